"""Which models this router serves, under which names, by which plans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r1_cluster.plan import Plan
from r1_cluster.routing.budget import BudgetRules

from r1_serve.checkpoint import Checkpoint
from r1_serve.errors import InvalidRequest, StartupError, UnknownModel
from r1_serve.router.choice import Vocabulary
from r1_serve.router.prompt import Prompts


@dataclass(frozen=True)
class ServedModel:
    """One served name: what all its plans agree on, and the tighter of their limits."""

    name: str
    aliases: tuple[str, ...]
    checkpoint: Checkpoint
    prompts: Prompts
    vocabulary: Vocabulary
    opens_thought: bool
    closing_ids: tuple[int, ...]  # ends a thought: </think> and the blank line; empty where the model does not think
    max_model_len: int
    default_max_tokens: int
    max_queued_requests: int
    max_queue_seconds: float
    budget_rules: BudgetRules
    drafts: bool  # in one of its plans
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> ServedModel:
        """From the plans of one served name. Raises StartupError where they disagree on what it is."""
        models = [plan.model for plan in plans]
        for other in models[1:]:
            if (other.checkpoint, other.reasoning) != (models[0].checkpoint, models[0].reasoning):
                raise StartupError(
                    f"plans {plans[0].name} and {plans[models.index(other)].name} serve different checkpoints as "
                    f"{other.name}: give one of them another model.name"
                )
        checkpoint = Checkpoint.load(models[0].checkpoint)
        for plan in plans:
            if plan.engine.num_speculative_tokens:
                _check_drafts(plan, checkpoint)
        prompts = Prompts(checkpoint)
        vocabulary = Vocabulary.of(checkpoint)
        if not models[0].reasoning:
            vocabulary = Vocabulary(vocabulary.token_bytes, vocabulary.control, None, None)
        closing_ids = _closing(checkpoint, vocabulary)
        rules = plans[0].limits.thinking
        return cls(
            name=models[0].name,
            aliases=tuple(dict.fromkeys(alias for model in models for alias in model.aliases)),
            checkpoint=checkpoint,
            prompts=prompts,
            vocabulary=vocabulary,
            opens_thought=prompts.opens_thought and models[0].reasoning,
            closing_ids=closing_ids,
            max_model_len=min(plan.engine.max_model_len for plan in plans),
            default_max_tokens=min(plan.limits.default_max_tokens for plan in plans),
            max_queued_requests=min(plan.limits.max_queued_requests for plan in plans),
            max_queue_seconds=min(plan.limits.max_queue_seconds for plan in plans),
            drafts=any(plan.engine.num_speculative_tokens for plan in plans),
            budget_rules=rules.model_copy(update={"closing_tokens": max(rules.closing_tokens, len(closing_ids))}),
        )


def _check_drafts(plan: Plan, checkpoint: Checkpoint) -> None:
    """Raises StartupError where ``checkpoint`` cannot draft, or every request would be one that vLLM does not draft
    for."""
    asked = f"plan {plan.name}: engine.num_speculative_tokens is {plan.engine.num_speculative_tokens}, and"
    if not checkpoint.mtp_layers:
        raise StartupError(
            f"{asked} {checkpoint.name} has no layer that drafts (no num_nextn_predict_layers in its config.json): "
            "leave it out"
        )
    if checkpoint.sampling.min_p:
        raise StartupError(
            f"{asked} {checkpoint.name} samples with min_p {checkpoint.sampling.min_p} (generation_config.json), which "
            "vLLM does not do with drafts: leave one of them out"
        )


def _closing(checkpoint: Checkpoint, vocabulary: Vocabulary) -> tuple[int, ...]:
    if vocabulary.think_end_id is None:
        return ()
    return (vocabulary.think_end_id, *checkpoint.plain.encode("\n\n", add_special_tokens=False).ids)


class Catalog:
    """Served names and aliases to models, plan hashes to plans."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        """Loads every checkpoint. Raises StartupError where names clash or a checkpoint cannot be read."""
        if not plans:
            raise StartupError("a router needs at least one plan")
        names = dict.fromkeys(plan.model.name for plan in plans)
        self.models: Mapping[str, ServedModel] = {
            name: ServedModel.of([plan for plan in plans if plan.model.name == name]) for name in names
        }
        self.plans: Mapping[str, Plan] = {plan.hash: plan for plan in plans}
        self._named: dict[str, ServedModel] = {}
        for model in self.models.values():
            for name in (model.name, *model.aliases):
                other = self._named.setdefault(name, model)
                if other is not model:
                    raise StartupError(f"{name} names both {other.name} and {model.name}: drop one of the aliases")

    def resolve(self, name: str) -> ServedModel:
        """The model of a name or alias; without a name the only one. Raises UnknownModel, InvalidRequest."""
        if not name:
            if len(self.models) == 1:
                return next(iter(self.models.values()))
            raise InvalidRequest(f"model: name one of {', '.join(self.models)}", field="model")
        model = self._named.get(name)
        if model is None:
            raise UnknownModel(f"model {name[:80]!r} is not served: use one of {', '.join(self._named)}", field="model")
        return model
