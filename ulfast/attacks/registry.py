"""The attacks by name. A new one is a file here and a line below."""

from __future__ import annotations

from ..errors import InputError
from ..names import nearest, resolve
from .auto import Auto
from .base import Attack
from .none import NoAttack
from .orthogonal import OrthogonalProjection
from .patch import OrthogonalPatch

ATTACKS: dict[str, Attack] = {
    "none": NoAttack(),
    "orthogonal": OrthogonalProjection(),
    "orthogonal-patch": OrthogonalPatch(),
    "auto": Auto(),
}

# Names for combinations.
JOINED = {"orthogonal-full": "orthogonal+orthogonal-patch", "full": "orthogonal+orthogonal-patch"}


def get_attack(name: str) -> tuple[str, list[Attack]]:
    """The canonical name and the attacks for a name, an alias, or several joined with ``+``, in order.

    Raises:
        InputError: an unknown name (the message suggests the nearest), or a combination that makes no sense.
    """
    keys: list[str] = []
    for part in JOINED.get(name.lower(), name).split("+"):
        key = resolve(part.strip(), ATTACKS)
        if key is None:
            raise InputError(f"unknown attack {part!r}{nearest(part, ATTACKS)}: known are {', '.join(ATTACKS)}")
        if key in keys:
            raise InputError(f"attack {name!r} names {key} twice: once is enough")
        keys.append(key)
    alone = [key for key in keys if key in ("none", "auto")]
    if len(keys) > 1 and alone:
        raise InputError(f"attack {name!r} joins `{alone[0]}` with others: leave it out")
    return "+".join(keys), [ATTACKS[key] for key in keys]
