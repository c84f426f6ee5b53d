"""The weights of the default model `tiny`, which ship with the package; `training` makes them."""
