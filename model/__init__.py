"""The tensors: networks, families and the engine. Usable offline; never imports `service`.

`video`, `pixels`, `conversation`, `features` and `engine.sampling_params` import no torch, so that the API process
and the decode child may use them.
"""
