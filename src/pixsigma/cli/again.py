"""`--again`: the settings inside a picture, as a job that draws it again."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pixsigma._version import __version__
from pixsigma.cli.options import FLAGS
from pixsigma.cli.wishes import SETTING
from pixsigma.editing.opening import fingerprint, is_data
from pixsigma.errors import InputError
from pixsigma.images import read_settings
from pixsigma.memory import EXACT_WAYS
from pixsigma.requests import GenerationRequest, request_from

BESIDE = {
    "again",
    "out",
    "device",
    "dtype",
    "memory",
    "decode",
    "prompt_cache",
    "image",
    "mask",
    "metadata",
    "batch",
    "json",
    "quiet",
} | {
    "sign",
    "sign_key",
    "sign_time",
}
"""Flags that go with --again; the others are in the picture."""

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What a picture tells of its precision, as the flag has it."""


def again(flags: Mapping[str, Any], written: Collection[str]) -> dict[str, Any]:
    """The settings inside a picture as fields of a Job; raises InputError.

    Only where a picture lies, and what computes and how, may be given anew.
    """
    if others := sorted(set(written) - BESIDE):
        named = ", ".join(FLAGS.get(name, f"--{name.replace('_', '-')}") for name in others)
        raise InputError(f"--again draws with the settings in the picture: leave {named} out")
    settings = read_settings(flags["again"])
    check_shape(settings)
    fields = {key: settings[key] for key in GenerationRequest.model_fields if key in settings}
    for field in ("image", "mask"):
        if flags[field] is not None:
            fields[field] = flags[field]
        if fields.get(field):
            check_source(field, fields[field], settings.get(f"{field}_sha256"))
    fields["control"] = [checked_hint(control) for control in fields.get("control") or ()]
    check_regions(fields.get("regions") or [], settings.get("regions_sha256") or [])
    if settings.get("pixsigma") != __version__:
        warnings.warn(
            f"{flags['again']} was drawn by pixsigma {settings.get('pixsigma')}, this is "
            f"{__version__}: the new picture may differ",
            stacklevel=2,
        )
    recorded = {name: settings.get(name) for name in SETTING}
    recorded["dtype"] = PRECISIONS.get(str(recorded["dtype"]), "auto")
    recorded["model"] = recorded["model"] or "mini"
    # the exact ways give the same picture, and this machine's plan chooses among them
    way = recorded["decode"] or "auto"
    recorded["decode"] = "auto" if way in EXACT_WAYS else way
    places = {"device": str(settings.get("device", "auto")).partition(":")[0]}
    anew = {name: flags[name] for name in ("device", "dtype", "decode") if name in written}
    return {"requests": [request_from(FLAGS, **fields)], **recorded, **places, **anew}


def check_shape(settings: Mapping[str, Any]) -> None:
    """Raise InputError for settings that another program wrote, where sources would stand."""
    kinds = {"image": str, "mask": str, "control": list, "regions": list, "regions_sha256": list}
    for field, kind in kinds.items():
        if not isinstance(settings.get(field, kind()), kind | None):
            raise InputError(f"the settings inside are damaged: {field} is no {kind.__name__}")
    for control in settings.get("control") or ():
        if not isinstance(control, dict) or not isinstance(control.get("hint"), str):
            raise InputError("the settings inside are damaged: a control has no hint")


def checked_hint(control: Mapping[str, Any]) -> dict[str, Any]:
    """A control of a picture's settings as a request has it; raises InputError.

    Its hint must be where it was, and the same.
    """
    control = dict(control)
    expected, hint = control.pop("hint_sha256", None), control["hint"]
    if is_data(hint):
        raise InputError("a hint was given as data and is not known by name: draw from the request")
    if fingerprint(hint) != expected:
        raise InputError(f"{hint} is not the hint that the picture was drawn from; put that back")
    return control


def check_regions(regions: Sequence[Any], expected: Sequence[Any]) -> None:
    """Raise InputError unless the masks of the regions are those that the picture had."""
    sources = [region.get("mask") if isinstance(region, Mapping) else None for region in regions]
    for k, source in enumerate(sources, start=1):
        if source is None:
            continue
        if is_data(source):
            raise InputError(
                f"the mask of region {k} was given as data and is not in the picture: draw it with "
                "--region MASK:TEXT and the settings that `pixsigma info` shows"
            )
        if fingerprint(source) != (expected[k - 1] if k <= len(expected) else None):
            raise InputError(
                f"{source} is not the mask of region {k} that the picture was drawn with; put that "
                "one back"
            )


def check_source(field: str, source: str, expected: str | None) -> None:
    """Raise InputError unless the file is the one that the picture was drawn from."""
    if is_data(source):
        raise InputError(f"the {field} was given as data and is not known by name: give --{field}")
    if fingerprint(source) != expected:
        raise InputError(
            f"{source} is not the {field} that the picture was drawn from; "
            f"give that one with --{field}"
        )
