"""The ClientApp of an example, with the local data and with a seed for each message.

Most apps leave their random numbers to chance; to compare two runs they have to be the same. This
is part of the data's replacement, outside of the app and of its mods.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import flwr.client
import flwr.clientapp.typing
import flwr.common.typing
import numpy as np
from flwr.app import Context, Message
from flwr.supercore.object_ref import load_app

from .local_data import install


@dataclass(frozen=True)
class SeededApp:
    """Answers as an example's ClientApp does, in whatever process it is called.

    Attributes:
        folder: The example's.
        component: Its ClientApp, as ``"module:attribute"``.
        examples: Of the local data.
    """

    folder: str
    component: str
    examples: int

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        made = loaded(self.folder, self.component, self.examples)
        asked = message.content.config_records.values()
        round_ = next((c["server-round"] for c in asked if "server-round" in c), 0)
        seed(context.node_config["partition-id"], message.metadata.message_type, round_)
        reply: Message = made(message, context)
        return reply


@cache
def loaded(folder: str, component: str, examples: int) -> Any:
    """Load a half of an app in its own folder, whatever other copy of it was loaded before."""
    forget()
    move_back()
    install(examples)
    os.chdir(folder)
    return load_app(component, ImportError, folder)


def move_back() -> None:
    """Put two names that newer Flowers moved where the examples still look for them."""
    sys.modules.setdefault("flwr.client.typing", flwr.clientapp.typing)
    if not hasattr(flwr.common.typing, "UserConfig"):
        flwr.common.typing.UserConfig = dict


def forget() -> None:
    """Let Python import modules of an app anew, from another copy."""
    import __main__

    for name, module in list(sys.modules.items()):
        if ".app/" in (getattr(module, "__file__", "") or "") and module is not __main__:
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if ".app/" not in path]


def seed(*parts: Any) -> None:
    """Seed Python, NumPy and the frameworks that this process uses."""
    number = zlib.crc32(" ".join(map(str, parts)).encode())
    random.seed(number)
    np.random.seed(number)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(number)
    if keras := sys.modules.get("keras"):
        keras.utils.set_random_seed(number)
    if mlx := sys.modules.get("mlx.core"):
        mlx.random.seed(number)
    if monai := sys.modules.get("monai"):  # its transforms take no other seed
        monai.utils.set_determinism(number)
