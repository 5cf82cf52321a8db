"""Seconds of one engine step: the operators of one rank, the collectives, and what the engine adds."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1_cluster.catalog import Architecture, Gpu, GroupedAttention, LatentAttention
from r1_cluster.perf.batch import Batch, Speculation
from r1_cluster.perf.constants import Constants, Framework, KvDtype, fitted
from r1_cluster.perf.layout import Split
from r1_cluster.perf.operators import KV_BYTES, all_reduce, exchange, gemm, latent_decode, routed_experts


@dataclass(frozen=True)
class Engine:
    """One engine: a model on ``split.gpus`` GPUs under a framework. Times are pure functions of it and a Batch."""

    model: Architecture
    gpu: Gpu
    split: Split
    framework: str
    constants: Constants
    kv_dtype: KvDtype
    speculation: Speculation | None = None  # by the model's MTP layer

    @classmethod
    def of(
        cls,
        model: Architecture,
        gpu: Gpu,
        split: Split,
        framework: str,
        *,
        constants: Constants | None = None,
        kv_dtype: KvDtype | None = None,
        speculation: Speculation | None = None,
    ) -> Engine:
        """An engine with the fitted constants and the framework's usual KV dtype, unless told otherwise.

        Raises ValueError for ``speculation`` by a model without an MTP layer.
        """
        if speculation and not model.mtp_layers:
            raise ValueError(f"{model.name} has no layer that drafts tokens: plan it without")
        constants = constants or fitted()
        kv_dtype = kv_dtype or constants.framework(framework).kv_dtype
        return cls(model, gpu, split, framework, constants, kv_dtype, speculation)

    @property
    def overheads(self) -> Framework:
        return self.constants.framework(self.framework)

    @property
    def tokens_per_step(self) -> float:
        """That a running sequence gets, on average."""
        return self.speculation.tokens_per_step if self.speculation else 1.0

    @property
    def width(self) -> int:
        """Tokens that a step works on for each running sequence: the last one and the drafts after it."""
        return 1 + self.speculation.drafts if self.speculation else 1

    # Memory.

    @property
    def most_layers(self) -> int:
        """On the fullest pipeline stage, the one that drafts among the last's."""
        stages = [*self.split.stages(self.model.layers)]
        stages[-1] += self.model.mtp_layers if self.speculation else 0
        return max(stages)

    def weight_bytes(self) -> int:
        """Weights on the fullest GPU: attention cut over tensor ranks, experts over all, MLA's down projections, norms
        and the router whole on each. Embedding and head are cut over tensor ranks, on the first and last stage; an MTP
        layer is on the last and shares its head."""
        model, split = self.model, self.split
        dense, moe = model.dense_mlp_bytes / split.tensor, self._experts_bytes()
        fullest, start = 0.0, 0
        for stage, count in enumerate(split.stages(model.layers)):
            plain = max(0, min(model.dense_layers - start, count))
            size = count * self._attention_bytes() + plain * dense + (count - plain) * moe
            size += model.embedding_bytes / split.tensor * (stage == 0)
            size += (model.lm_head_bytes / split.tensor + self._mtp_bytes()) * (stage == split.pipeline - 1)
            fullest, start = max(fullest, size), start + count
        return int(fullest)

    def _experts_bytes(self) -> float:
        """One mixture-of-experts block on the fullest GPU."""
        model, split = self.model, self.split
        if model.experts is None:
            return 0.0
        routed = ceil(model.experts.routed / split.expert) * model.expert_bytes / split.expert_tensor
        return routed + model.shared_expert_bytes / split.tensor + model.router_bytes

    def _mtp_bytes(self) -> float:
        """The layer that drafts, where it is loaded. vLLM cuts neither eh_proj nor the norms, and shares the model's
        embedding with the layer where that is on the same GPU."""
        if self.speculation is None:
            return 0.0
        model, split = self.model, self.split
        own = self._attention_bytes() + self._experts_bytes() + model.mtp_projection_bytes
        return own + model.embedding_bytes / split.tensor * (split.pipeline > 1)

    def _attention_bytes(self) -> float:
        """Attention of one layer on one tensor rank. KV heads are repeated once there are more ranks than heads."""
        model, tensor = self.model, self.split.tensor
        size = model.attention_bytes / tensor
        if isinstance(model.attention, LatentAttention):
            whole = model.attention.q_lora_rank + model.attention.kv_values
            return size + model.linear_bytes(whole, model.hidden_size) * (1 - 1 / tensor)
        shape = model.attention
        pair = 2 * model.linear_bytes(shape.kv_heads * shape.head_dim, model.hidden_size)
        return size + pair * (1 / min(tensor, shape.kv_heads) - 1 / tensor)

    def kv_tokens(self, *, utilization: float = 0.9, workspace: float = 6e9) -> int:
        """KV tokens the whole engine holds: usable memory less weights and ``workspace`` bytes, over data ranks.

        MLA's cache is repeated on tensor ranks. 0 where the weights do not fit.
        """
        free = self.gpu.usable_bytes(utilization) - self.weight_bytes() - workspace
        return max(0, int(free / self.kv_bytes_per_token())) * self.split.data

    def kv_bytes_per_token(self) -> int:
        """KV bytes one token holds on the fullest GPU of its rank: MLA's vector is whole on every tensor rank, and the
        layer that drafts has one, too."""
        each = self.model.kv_bytes_per_layer(self.kv_dtype, tensor_parallel_size=self.split.tensor)
        return each * self.most_layers

    # Time.

    @property
    def wide(self) -> bool:
        """Whether data-parallel attention and experts span more than one NVLink domain."""
        return self.split.data > 1 and self.split.ranks > self.gpu.domain

    def seconds(self, batch: Batch) -> float:
        """One step over the whole model. With pipeline stages, the time of one microbatch through all of them."""
        overheads, split, model = self.overheads, self.split, self.model
        if batch.tokens <= 0:
            return 0.0
        time = model.layers * self._layer(batch) + model.moe_layers * self.experts_layer(batch)
        time += model.dense_layers * self._mlp(batch.tokens / split.data, model.intermediate_size, split.tensor)
        exchange = model.moe_layers * self.exchange_layer(batch)
        hidden = overheads.overlap * min(time, exchange) if self.wide else 0.0
        time += exchange - hidden
        time += self._head(batch) + overheads.step + overheads.sequence * batch.decode / split.data
        if batch.prefill:
            time += overheads.eager
        return time + (split.pipeline - 1) * self._hop(batch)

    def decodes(self, sequences: float, context: float) -> Batch:
        """``sequences`` running with ``context`` cached tokens each, and their drafts."""
        return Batch.decodes(sequences, context, width=self.width)

    def decode_seconds(self, sequences: float, context: float) -> float:
        """Seconds between two tokens of each of ``sequences`` running sequences, without prefill in the way.

        With p pipeline stages, p microbatches of 1/p of the sequences follow each other.
        """
        each = max(1.0, sequences / self.split.pipeline)
        step = self.seconds(self.decodes(each, context))
        if self.speculation:
            step += self.speculation.drafts * self._draft(Batch.decodes(each, context))
        return step / self.tokens_per_step

    def added_seconds(self, running: Batch, prompts: Batch) -> float:
        """Seconds that ``prompts`` add to a step of ``running``. The layer that drafts reads them, too."""
        both = running.beside(prompts)
        added = self.seconds(both) - self.seconds(running)
        if self.speculation:
            added += self._draft(both) - self._draft(running)
        return added

    def prefill_seconds(
        self, tokens: float, *, past: float = 0.0, count: float = 1.0, ranks: float = 1.0, decode: Batch | None = None
    ) -> float:
        """Seconds that ``count`` prompts of ``tokens`` new tokens add, chunk by chunk.

        A framework that mixes adds them to ``decode``'s steps, others run them alone. ``past`` tokens hit the cache.
        They lie on ``ranks`` of the data-parallel ranks.
        """
        chunks = max(1, ceil(tokens / self.overheads.chunk))
        running = decode if decode and self.overheads.mixed else Batch()
        new, total = tokens / chunks, 0.0
        for index in range(chunks):
            prompts = Batch.prompts(new, past=past + index * new, count=count, ranks=ranks)
            total += self.added_seconds(running, prompts)
        return total * self.overheads.prefill

    def _layer(self, batch: Batch) -> float:
        """What every layer has: attention, collectives, launches."""
        return self.attention_layer(batch) + self._between(batch) + self.overheads.layer

    def _draft(self, batch: Batch) -> float:
        """One pass of the multi-token-prediction layer (arXiv 2412.19437 §2.2): a layer, eh_proj and the head."""
        if batch.tokens <= 0:
            return 0.0
        hidden = self.model.hidden_size
        time = self._layer(batch) + self._head(batch)
        time += self.experts_layer(batch) + self.exchange_layer(batch)
        return time + self._gemm(sum(self._local(batch)), hidden, 2 * hidden, "bfloat16")

    def _hop(self, batch: Batch) -> float:
        """Hidden states from one pipeline stage to the next, over each rank's network port."""
        size = 2 * batch.tokens / self.split.data * self.model.hidden_size
        fits = self.constants.collectives
        return fits.network_fixed + size / (self.gpu.network * fits.network_bandwidth * self.split.tensor)

    def _local(self, batch: Batch) -> tuple[float, float]:
        """Prefill and decode tokens of the busiest rank."""
        return batch.prefill / min(batch.prefill_ranks, self.split.data), batch.decode * batch.width / self.split.data

    def _gemm(self, tokens: float, rows: float, columns: float, dtype: str | None = None) -> float:
        kind = dtype or ("fp8_block" if self.model.weight_dtype == "fp8_block" else "bfloat16")
        return gemm(self.gpu, self.constants.gemm[kind], tokens, rows, columns, kind)

    def attention_layer(self, batch: Batch) -> float:
        prefill, decode = self._local(batch)
        shape, hidden, tensor = self.model.attention, self.model.hidden_size, self.split.tensor
        heads = self.model.heads / tensor
        tokens = prefill + decode
        fits, ranks = self.constants.attention, min(batch.prefill_ranks, self.split.data)
        score = shape.score_flops(self.model.heads) / tensor
        core = batch.pairs / ranks * score / (self.gpu.rate("bfloat16") * fits.prefill_compute)
        core += prefill * hidden * 2 * fits.prefill_passes / self.gpu.bandwidth
        cached = batch.cached / self.split.data
        if isinstance(shape, GroupedAttention):
            values = shape.kv_values / min(tensor, shape.kv_heads)
            if decode:
                memory = cached * values * KV_BYTES[self.kv_dtype]
                core += fits.fixed + memory / (self.gpu.bandwidth * fits.decode_bandwidth)
            fused = heads * shape.head_dim + values
            return core + self._gemm(tokens, fused, hidden) + self._gemm(tokens, hidden, heads * shape.head_dim)
        time = core + self._gemm(tokens, shape.q_lora_rank + shape.kv_values, hidden)
        time += self._gemm(tokens, heads * shape.qk_head_dim, shape.q_lora_rank)
        time += self._gemm(tokens, hidden, heads * shape.v_head_dim)
        if prefill:  # keys and values are expanded, the cached prefix's too
            up = heads * (shape.qk_nope_head_dim + shape.v_head_dim)
            time += self._gemm(prefill + batch.past / ranks, up, shape.kv_lora_rank, "bfloat16")
        if decode:  # kv_b's halves act on the query and the output instead
            time += self._gemm(decode, heads * shape.qk_nope_head_dim, shape.kv_lora_rank, "bfloat16")
            time += self._gemm(decode, heads * shape.v_head_dim, shape.kv_lora_rank, "bfloat16")
            padded = max(heads * batch.width, self.overheads.decode_heads)
            share = self.overheads.decode_compute
            time += latent_decode(self.gpu, fits, cached, padded, self.kv_dtype, compute=share)
        return time

    def _between(self, batch: Batch) -> float:
        """All-reduces of one layer: after attention and after the MLP, in the tensor group."""
        split = self.split
        size = 2 * sum(self._local(batch)) * self.model.hidden_size
        reduce = all_reduce(self.gpu, self.constants.collectives, size, split.tensor)
        return 2 * reduce if split.data == 1 else reduce

    def exchange_layer(self, batch: Batch) -> float:
        """What data-parallel attention costs a layer: meeting, and tokens to their experts and back in a MoE layer."""
        split, experts = self.split, self.model.experts
        if split.data == 1 or experts is None:
            return 0.0
        fits, hidden = self.constants.collectives, self.model.hidden_size
        time = self.overheads.data_parallel
        for tokens, latency in zip(self._local(batch), (False, True), strict=True):
            if tokens:
                share = tokens / split.tensor
                time += exchange(self.gpu, fits, share, hidden, experts.top_k, split.ranks, latency=latency)
        return time

    def _mlp(self, tokens: float, width: float, ranks: int) -> float:
        hidden = self.model.hidden_size
        return self._gemm(tokens, 2 * width / ranks, hidden) + self._gemm(tokens, hidden, width / ranks)

    def experts_layer(self, batch: Batch) -> float:
        experts, split, constants = self.model.experts, self.split, self.constants
        if experts is None:
            return 0.0
        local = sum(self._local(batch))
        shared = self._mlp(local, experts.shared * experts.intermediate_size, split.tensor) if experts.shared else 0.0
        routed = routed_experts(
            self.gpu,
            constants.kernels[self.overheads.wide_kernel if self.wide else self.overheads.kernel],
            experts,
            self.model.hidden_size,
            self.model.expert_bytes,
            batch.tokens,
            tensor=split.expert_tensor,
            ranks=split.expert,
            skew=constants.routing.skew,
            hot=constants.routing.hot,
            dtype=self.model.weight_dtype,
        )
        gate = self._gemm(local, experts.routed, self.model.hidden_size, "bfloat16")
        return routed * self.overheads.experts + shared + gate

    def _head(self, batch: Batch) -> float:
        """Logits of every decode token and of one prompt's last."""
        tokens = batch.decode * batch.width / self.split.data + (1 if batch.prefill else 0)
        return self._gemm(tokens, self.model.vocab_size / self.split.tensor, self.model.hidden_size, "bfloat16")
