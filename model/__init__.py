"""Networks, families and the engine. Can be used offline, and never imports `service`.

`video`, `text.conversation`, `features` and `engine.sampling_params` import no torch, so that the API process and the
decode child can use them.
"""
