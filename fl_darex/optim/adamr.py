"""AdamR: Adam with a pull towards an anchor, so that the delta stays small enough to drop.

Deng et al., "DARE the Extreme", ICLR 2025, Eq. 3, https://arxiv.org/abs/2410.09344; the decay by
the mean second moment is after AdamS, Xie et al., https://arxiv.org/abs/2011.11152.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fl_darex.compiled import load
from fl_darex.errors import AnchorError
from fl_darex.optim.groups import Track, check_group, fingerprint, model_groups, resolve

_ROW = 1024  # a CPU norm adds float32 naively: 1e-3 off at 23 M elements, 1e-6 at this many
_PIECE = 2**18  # elements: on a CPU a large temporary costs more than the arithmetic
_SECONDS = 0.45e-9  # that torch takes to pull an entry by a distance, about
_FINGERPRINT, _SQUARE_SUM = "anchor_fingerprint", "square_sum"
# torch wraps the public step in the hooks of AdamW; calling that could run user hooks twice.
_adamw_step: Callable[..., Any] = inspect.unwrap(torch.optim.AdamW.step)


class AdamR(torch.optim.AdamW):
    """Adam that also pulls every parameter towards its anchor, the point that deltas start from.

    With m^ and v^ Adam's bias-corrected moments and v_bar the mean of v^ over all elements of all
    parameters, in all groups, that have a gradient in this step, a step is (Eq. 3) ::

        w = lr * delta_decay / (sqrt(v_bar) + eps)
        l2: theta <- theta - lr * m^ / (sqrt(v^) + eps) - w * (theta - anchor)
        l1: theta <- theta - lr * m^ / (sqrt(v^) + eps) - w * sign(theta - anchor)

    ``delta_decay=0`` is exactly Adam. A parameter without a gradient does not move and does not
    count in v_bar. A new head has no meaningful anchor: give it a group with ``delta_decay=0``, as
    ``for_model`` does.
    Two differences from the paper keep the pull from overshooting: l2 clamps w at 1 (back to the
    anchor, then the Adam step), and l1 stops an entry at the anchor that it would cross. While
    all gradients are 0, w is lr * delta_decay / eps: as a rule all the way back.
    What matters is w, not ``delta_decay`` alone; see ``last_pull``. With gradients clipped at
    norm 1 over N elements sqrt(v_bar) is about 1/sqrt(N): to carry a strength to another model or
    learning rate, keep ``lr * delta_decay * sqrt(N)``.
    Memory: the anchor, one copy of the parameters, more than Adam. ``state_dict`` holds only its
    fingerprint: to resume, build the optimizer as at the start, on the base model, before the
    checkpoint's weights are loaded (as Hugging Face's Trainer does), or hand the anchor over. What
    has ``delta_decay=0`` has no fingerprint: a fresh head may be drawn anew.

    Args:
        params: Real floating-point parameters, ``model.named_parameters()`` or group dicts, which
            may set ``lr``, ``betas``, ``eps``, ``delta_decay``, ``norm`` and ``anchor``.
        lr: Learning rate, at least 0; a one-element tensor is allowed.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to both denominators, at least 0.
        delta_decay: The paper's lambda, at least 0. Higher means smaller deltas.
        norm: ``"l2"`` shrinks the delta, ``"l1"`` favours few large entries.
        anchor: None is the values that the parameters have now. Else tensors of their shapes, in
            their order, or by name if the parameters are named. More names are allowed, and what
            has ``delta_decay=0`` may be missing. They are copied, and follow their parameter's
            device and dtype from the first step.

    Raises:
        AnchorError: If the anchor lacks a tensor, has one too many, or a shape does not fit.
        TypeError: If a parameter or an anchor is not real floating-point tensors.
        ValueError: If an option is out of range, or one that AdamR does not have.
    """

    # Left to itself, a GradScaler would hand scaled gradients to a fused optimizer.
    _step_supports_amp_scaling = False

    def __init__(
        self,
        params: torch.optim.optimizer.ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        delta_decay: float = 1e-4,
        norm: Literal["l2", "l1"] = "l2",
        anchor: Iterable[Tensor] | Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tracks: dict[Tensor, Track] = {}
        self._pulls: list[Tensor | None] = []
        self._fingerprints: list[str | None] | None = None
        self._options: dict[str, Any] = {"delta_decay": delta_decay, "norm": norm}
        self._anchor_follows = anchor is not None
        super().__init__(params, lr, betas, eps, weight_decay=0.0)
        if anchor is not None:
            if self._tracks:
                raise ValueError("anchor is given both to AdamR and in a group; give one of them")
            self._tracks = resolve(self.param_groups, anchor)
            self._anchor_follows = False

    @classmethod
    def for_model(
        cls, model: torch.nn.Module, *, fresh: Iterable[str] = (), **options: Any
    ) -> Self:
        """Return AdamR for what a model trains; fresh tensors are trained without a pull.

        ``Trainer(model, ..., optimizers=(AdamR.for_model(model, lr=2e-5, delta_decay=0.1,
        fresh=["classifier"]), None))`` is all that Hugging Face's Trainer needs.

        Args:
            model: Frozen parameters (``requires_grad=False``) are left out.
            fresh: What the base checkpoint lacks: names of parameters or of modules, such as
                ``missing_keys`` of ``from_pretrained(..., output_loading_info=True)``.
            options: As for AdamR itself.

        Raises:
            ValueError: If nothing is trained, or a fresh name fits no trained parameter.
        """
        return cls(model_groups(model, fresh), **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with the constructor's options and errors; an error changes nothing."""
        group = self._options | param_group  # a copy: the caller can use the dict again
        anchor = group.pop("anchor", None)
        super().add_param_group(group)
        try:
            check_group(group)
            if anchor is not None or not self._anchor_follows:
                self._tracks |= resolve([group], anchor)
        except Exception:
            self.param_groups.pop()
            raise
        if group["fused"] is None and group["foreach"] is None:
            group["fused"] = all(p.device.type in ("cpu", "cuda") for p in group["params"]) or None
        self._pulls.append(None)
        self._fingerprints = None

    @property
    def last_pull(self) -> list[float]:
        """The w of the last step for each group, before it is clamped at 1; 0 = no pull.

        l2: the fraction of the delta that the step took away. l1: the distance, in the
        parameter's units. Reading it makes the host wait for the device; a step does not.
        """
        return [0.0 if pull is None else float(pull) for pull in self._pulls]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what ``closure``, which computes the gradients, returned.

        Raises:
            AnchorError: If a parameter object was replaced after construction.
            RuntimeError: If a gradient is sparse.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            rows = [(p, group) for group in self.param_groups for p in _with_gradient(group)]
            self._pulls = [None] * len(self.param_groups)
            if rows:
                # Before Adam's step: m^ and v^ do not depend on theta, so this equals Eq. 3.
                v_bar = self._mean_second_moment(rows)
                self._pulls = [self._pull(group, v_bar) for group in self.param_groups]
            _adamw_step(self)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, the recursion of v_bar and a fingerprint of the anchor."""
        packed = super().state_dict()
        rows = zip(packed["param_groups"], self.param_groups, self._fingerprint(), strict=True)
        for saved, group, own in rows:
            saved[_FINGERPRINT] = own
            for index, p in zip(saved["params"], group["params"], strict=True):
                if index in packed["state"]:
                    # A float: torch would round a tensor to the parameter's dtype on loading.
                    total = {_SQUARE_SUM: float(self._track(p).square_sum)}
                    packed["state"][index] = packed["state"][index] | total
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; equal gradients then give the same bits as without the stop.

        Raises:
            AnchorError: If it was saved with another anchor, or not by AdamR; nothing is loaded.
        """
        for saved, own in zip(state_dict["param_groups"], self._fingerprint(), strict=False):
            found = saved.get(_FINGERPRINT, "none: not saved by AdamR")
            if found not in (None, own):
                raise AnchorError(
                    f"the state has {_FINGERPRINT} {found!r}, the optimizer {own!r}; build it with "
                    "the anchor of the saved run: on the base model, before the checkpoint's "
                    "weights are loaded, or with anchor=..."
                )
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            del group[_FINGERPRINT]
            for p in group["params"]:
                track, state = self._track(p), self.state.get(p) or {"step": 0, _SQUARE_SUM: 0.0}
                track.steps = int(state["step"])
                track.square_sum = torch.tensor(state.pop(_SQUARE_SUM), dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        """Return what ``pickle`` and ``deepcopy`` keep; the anchor is part of it."""
        own = ("_tracks", "_pulls", "_fingerprints", "_options", "_anchor_follows")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def _track(self, p: Tensor) -> Track:
        if (track := self._tracks.get(p)) is None:
            raise AnchorError(f"parameter {tuple(p.shape)} is new; build AdamR on the final model")
        if track.anchor.device != p.device or track.anchor.dtype != p.dtype:
            track.anchor = track.anchor.to(device=p.device, dtype=p.dtype)
            self._fingerprints = None
        return track

    def _mean_second_moment(self, rows: list[tuple[Tensor, dict[str, Any]]]) -> Tensor:
        """Advance every recursion by one step and return v_bar, float64, shape ()."""
        # sum(v_t) = b2 sum(v_{t-1}) + (1 - b2) |g_t|^2: no pass over v, no value on the host.
        squares = _square_sums([p.grad for p, _ in rows if p.grad is not None])
        tracks = [self._track(p) for p, _ in rows]
        betas = [float(group["betas"][1]) for _, group in rows]
        for track in tracks:
            track.steps += 1
            track.square_sum = track.square_sum.to(squares[0].device)
        sums = [track.square_sum for track in tracks]
        torch._foreach_mul_(sums, betas)
        torch._foreach_add_(sums, torch._foreach_mul(squares, [1 - beta2 for beta2 in betas]))
        bias = [1 - beta2**track.steps for beta2, track in zip(betas, tracks, strict=True)]
        count = max(1, sum(p.numel() for p, _ in rows))
        return torch.stack(torch._foreach_div(sums, bias)).sum() / count

    def _pull(self, group: dict[str, Any], v_bar: Tensor) -> Tensor | None:
        params = _with_gradient(group)
        if not params or group["delta_decay"] == 0:
            return None
        pull: Tensor = group["lr"] * group["delta_decay"] / (v_bar.sqrt() + group["eps"])
        # Weights stay tensors: a number would make the host wait for the backward pass.
        weight = pull.clamp(max=1.0) if group["norm"] == "l2" else pull
        cast = {k: weight.reshape(()).to(*k) for k in {(p.device, p.dtype) for p in params}}
        weights = [cast[p.device, p.dtype] for p in params]
        move = torch._foreach_lerp_ if group["norm"] == "l2" else _pull_l1
        move(params, [self._track(p).anchor for p in params], weights)
        return pull

    def _fingerprint(self) -> list[str | None]:
        """Return a fingerprint of each group's anchor; None where there is no pull."""
        tracks = [[self._track(p) for p in group["params"]] for group in self.param_groups]
        if self._fingerprints is None:
            self._fingerprints = [fingerprint(some) for some in tracks]
        rows = zip(self.param_groups, self._fingerprints, strict=True)
        return [own if group["delta_decay"] else None for group, own in rows]


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    params = [p for p in group["params"] if p.grad is not None]
    if any(p.grad.layout is not torch.strided for p in params):
        raise RuntimeError("AdamR does not support sparse gradients; use sparse=False")
    return params


def _square_sums(grads: list[Tensor]) -> list[Tensor]:
    """Return the sum of squares of each gradient, float64, shape (), on one device."""
    wide = torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32
    if any(not g.is_cpu for g in grads):
        norms = torch._foreach_norm(grads, 2, dtype=wide)
        home = "cpu" if norms[0].device.type == "mps" else norms[0].device  # MPS has no float64
        return list(torch.stack([norm.to(home) for norm in norms]).double().square_().unbind())
    sums = []
    for flat in (g.reshape(-1) for g in grads):
        whole = flat.numel() // _ROW * _ROW
        rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=wide)
        rest = torch.linalg.vector_norm(flat[whole:], dtype=wide)
        sums.append(rows.double().square_().sum() + rest.double().square_())
    return sums


def _pull_l1(params: list[Tensor], anchors: list[Tensor], steps: list[Tensor]) -> None:
    """Move each entry towards its anchor by a distance, or onto it if it is nearer, in place."""
    # A compiled loop has one thread: two of torch's are as fast, more are faster.
    alone = torch.get_num_threads() == 1
    plain = [alone and all(map(_is_plain, pair)) for pair in zip(params, anchors, strict=True)]
    kernels = load(_SECONDS * sum(p.numel() for p in compress(params, plain)))
    for p, anchor, step, is_plain in zip(params, anchors, steps, plain, strict=True):
        if kernels and is_plain:
            flat = (t.detach().view(-1).numpy() for t in (p, anchor))
            kernels.approach(*flat, step.numpy()[()])
            continue
        both = (t.view(t.shape or (1,)).chunk(1 + t.numel() // _PIECE) for t in (p, anchor))
        for theta, goal in zip(*both, strict=True):
            lowest = theta - step  # the goal clamped to theta +- step: hit to the bit if near
            torch.clamp(goal, lowest, theta.add_(step), out=theta)


def _is_plain(t: Tensor) -> bool:
    """Return whether a compiled loop can take a tensor's memory as it is."""
    return t.is_cpu and t.dtype is torch.float32 and t.is_contiguous() and type(t.data) is Tensor
