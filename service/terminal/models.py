"""Runs `reeltalk models`, and checks that a named model fits a conversation.

An earlier release of the service has fewer fields; its models are ready and see videos.
"""

from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.failures import Exit, Failure, usage_error
from service.terminal.printing import print_json, print_table

_TITLES = ("model", "state", "family", "sees", "frames", "times", "context")


def print_models(client: Client, *, as_json: bool) -> None:
    """Print a table of the models that the service serves, with the default marked."""
    models = client.models()
    if as_json:
        print_json({"object": "list", "data": models})
    else:
        print_table(_TITLES, [_row(model) for model in models])


def check_model(client: Client, name: str, *, has_video: bool) -> None:
    """Check that the service serves a model and that the model fits a conversation with or without a video.

    Raises:
        Failure: the name is empty, the service does not serve the model, or the model fits the other kind of
            conversation.
    """
    if not name:
        raise usage_error("--model needs a name; `reeltalk models` lists those of the service.")
    models = client.models()
    model = next((model for model in models if model.get("id") == name), None)
    if model is None:
        served = ", ".join(str(model.get("id")) for model in models)
        raise Failure(Exit.NOT_FOUND, f"The service does not serve {name}; it serves {served}.", code="model_not_found")
    sees = sees_videos(model)
    if has_video and sees is False:
        raise usage_error(f"{name} cannot see videos; omit the VIDEO.")
    if not has_video and sees is True:
        raise usage_error(f"{name} answers questions about a video; name a VIDEO.")


def sees_videos(model: Document) -> bool | None:
    """Whether conversations with a model are about videos; None if that is unknown until it has been loaded."""
    modalities = model.get("modalities", ("video",))
    return None if modalities is None else "video" in modalities


def _row(model: Document) -> tuple[str, ...]:
    mark = " (default)" if model.get("is_default") else ""
    frames = model.get("frames") or {}
    bounds = f" ({frames.get('min')} to {frames.get('max')})" if frames else ""
    axis = model.get("time_axis")
    return (
        f"{model.get('id')}{mark}",
        str(model.get("state") or "ready"),
        str(model.get("family") or ""),
        {True: "videos", False: "text", None: ""}[sees_videos(model)],
        f"{frames.get('default', '')}{bounds}",
        "" if axis is None else f"of {axis} positions",
        f"{model.get('max_model_len') or ''}",
    )
