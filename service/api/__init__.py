"""The HTTP interface: routes, schemas and middleware. It translates and validates; decisions are made elsewhere."""
