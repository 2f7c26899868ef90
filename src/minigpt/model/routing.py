"""Which experts each token goes to, and what keeps them equally busy.

Without a counterweight a router soon sends most tokens to a few experts, which then learn most. Either an auxiliary
loss draws the router back (Fedus et al. 2021, section 2.2), or a bias that is no weight moves the choice from busy
experts to idle ones after each step (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing"; DeepSeek-V3).

The auxiliary losses never enter the loss that is reported: `Routers.attach` lets the backward pass alone see them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from minigpt.config import RequestError
from minigpt.config.architecture import MoEConfig
from minigpt.model.loss import IGNORED

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from minigpt.model.moe import MoE

SMALLEST_SUM = 1e-20  # of a token's weights before they are divided by it: the sigmoids of bad scores may vanish


class Routing(NamedTuple):
    """How the tokens of one pass were spread over the experts of one layer. The losses can be differentiated."""

    load: Tensor
    """(E,) int64: tokens that went to each expert."""
    balance_loss: Tensor
    """Scalar: 1 when all experts are equally busy, up to E when one gets everything (see `balance_loss`)."""
    z_loss: Tensor
    """Scalar: mean of log(sum(exp(scores)))^2 over the tokens (Zoph et al. 2022, ST-MoE, equation 5)."""
    entropy: Tensor
    """Scalar: mean entropy of the tokens' distributions over the experts, in nats; log(E) when undecided."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a layer has made no pass (and what can be differentiated cannot be copied)."""


def route(
    scores: Tensor,
    moe: MoEConfig,
    bias: Tensor | None = None,
    watched: bool = False,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Routing | None]:
    """Choose experts.

    Args:
        scores: (N, E) the router's, at least fp32.
        moe: how they become choices and weights.
        bias: (E,), added for the choice but not for the weights.
        watched: whether to look at how equally busy the experts are.
        total: sums over the processes that have the other tokens of the rows; None: all are here. The losses are then
            these tokens', and the mean over the processes is that over all tokens.

    Returns:
        (N, k) int64 chosen experts, best first; (N, k) their weights; how it went, if watched.
    """
    affinity = torch.softmax(scores, dim=-1) if moe.router == "softmax" else torch.sigmoid(scores)
    with torch.no_grad():
        preference = affinity if bias is None else affinity + bias
        chosen = preference.topk(moe.n_expert_used, dim=-1).indices
    weights = affinity.gather(1, chosen)
    if moe.normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
    weights = weights * moe.weight_scale
    return chosen, weights, _watch(scores, affinity, chosen, moe, total) if watched else None


def _watch(
    scores: Tensor,
    affinity: Tensor,
    chosen: Tensor,
    moe: MoEConfig,
    total: Callable[[Tensor], Tensor] | None,
) -> Routing:
    share = affinity
    if moe.router == "sigmoid":  # as a distribution over the experts (DeepSeek-V3, equation 19)
        share = affinity / affinity.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
    load = torch.zeros(moe.n_expert, dtype=torch.int64, device=chosen.device)
    load = load.scatter_add(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
    load = load if total is None else total(load)
    z_loss = torch.logsumexp(scores, dim=-1).square().mean()
    entropy = torch.special.entr(share.detach()).sum(-1).mean()
    return Routing(load, balance_loss(load, share), z_loss, entropy)


def balance_loss(load: Tensor, share: Tensor) -> Tensor:
    """E * sum over experts of (its part of the choices) * (mean of its probability): Fedus et al. 2021, equation 4.

    With k choices a token its part is of N * k, so that 1 means balance whatever k is.

    Args:
        load: (E,) tokens that went to each expert.
        share: (N, E) each token's distribution over the experts; the gradient goes through it.
    """
    part = load.to(share.dtype) / load.sum()
    return load.numel() * (part * share.mean(0)).sum()


class Routers:
    """The routers of a whole model while it trains: what they add to the loss, and how they did in the current step.

    A pass in training leaves a `Routing` in each layer; `attach` (or `auxiliary_loss`) takes them. So a layer that is
    computed twice to spare memory counts once. Without experts nothing here has an effect.

    layers: the mixtures, in the order of the blocks.
    """

    def __init__(self, layers: Sequence["MoE"]) -> None:
        self.layers = list(layers)
        self.share = 1.0
        """This process's part of the auxiliary losses, where several compute them for the same rows."""
        self.clear()

    def clear(self) -> None:
        """A new optimizer step begins."""
        self.load: Tensor | None = None
        """(layers, E) tokens that went to each expert in this step."""
        self._sums: Tensor | None = None
        self._passes = 0

    def attach(self, loss: Tensor, targets: Tensor) -> Tensor:
        """`loss` as it is, but whose backward pass sees the auxiliary losses of the last pass besides.

        They are multiplied by the number of `targets` that `loss`, a scalar, is the sum over: so whatever divides it by
        all the targets of a step makes them the mean over its passes, each weighted by its targets. An objective that
        makes its loss of the logits itself calls this; a model that is given `targets` does.
        """
        if all(layer.routing is None for layer in self.layers):
            return loss
        attached: Tensor = _Attached.apply(loss, self.auxiliary_loss() * (targets != IGNORED).sum())
        return attached

    def auxiliary_loss(self) -> Tensor:
        """The sum over layers of the weighted auxiliary losses of the last pass in training, once."""
        weighted = []
        for layer, routing in self._take():
            moe = layer.moe
            if moe.balance == "loss":
                weighted.append(moe.balance_weight * routing.balance_loss)
            if moe.z_loss_weight:
                weighted.append(moe.z_loss_weight * routing.z_loss)
        return torch.stack(weighted).sum() * self.share if weighted else torch.zeros(())

    def _take(self) -> Iterator[tuple["MoE", Routing]]:
        """The routings of the last pass, which are counted and forgotten."""
        taken = [(layer, layer.routing) for layer in self.layers if layer.routing is not None]
        if taken:
            load = torch.stack([routing.load for _, routing in taken])
            sums = torch.stack([torch.stack(routing[1:]).detach() for _, routing in taken]).mean(0)  # (3,)
            self.load = load if self.load is None else self.load + load
            self._sums = sums if self._sums is None else self._sums + sums
            self._passes += 1
        for layer in self.layers:
            layer.routing = None
        yield from taken

    @torch.no_grad()
    def sum_over(self, group: "ProcessGroup | None") -> None:
        """After the passes of a step: count those of the other processes of the group, which had other rows."""
        if group is None or self.load is None or self._sums is None:
            return
        import torch.distributed as dist

        passes = torch.tensor([float(self._passes)], device=self.load.device)
        counts = torch.cat([self.load.flatten().double(), self._sums.double(), passes.double()])
        dist.all_reduce(counts, group=group)
        *sums, count = counts[self.load.numel() :].tolist()
        self.load = counts[: self.load.numel()].view(self.load.shape).to(self.load.dtype)
        self._sums, self._passes = self._sums.new_tensor(sums), int(count)

    @torch.no_grad()
    def balance(self) -> None:
        """After an optimizer step: move the biases against the loads of the step (Wang et al. 2024, algorithm 1).

        Raises RequestError if nobody took the losses and loads of the step's passes, but the config wants them.
        """
        if self.load is None:
            if all(layer.moe.balance == "none" and not layer.moe.z_loss_weight for layer in self.layers):
                return
            raise RequestError(
                "the objective makes its loss without the routers of the experts: let it give `targets` to the model, "
                "or let it return model.routers.attach(loss, targets)"
            )
        for layer, load in zip(self.layers, self.load.to(torch.float32), strict=True):
            if layer.balance_bias is not None:
                layer.balance_bias += layer.moe.balance_rate * torch.sign(load.mean() - load)

    def metrics(self) -> dict[str, float]:
        """Of the step so far, means over layers and micro-batches (of the load: the worst layer's); {} for no experts.

        Waits for the device.
        """
        if self.load is None or self._sums is None:
            return {}
        part = self.load / self.load.sum(1, keepdim=True)
        worst = part.max() * part.size(1)
        balance, z, entropy, load = torch.cat([self._sums / self._passes, worst[None]]).tolist()
        return {
            "train/moe_balance_loss": balance,
            "train/moe_z_loss": z,
            "train/moe_router_entropy": entropy,
            "train/moe_max_load": load,
        }


class _Attached(torch.autograd.Function):
    """The first argument; the gradient goes to both."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, auxiliary: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor]:
        return d_loss, d_loss
