"""Memory of one GPU, estimated: pure functions of a model's shape and of verl's options.

verl colocates FSDP and vLLM: both live on every GPU, and one sleeps while the other works. So there are three peaks.

    rollout   what FSDP keeps resident + the share that vLLM is given (`gpu_memory_utilization` of the whole GPU)
    log-prob  weights, optimizer + a forward pass with the entropy of every token      + vLLM asleep
    update    weights, optimizer, gradients + a forward and a backward pass            + vLLM asleep

Tokens of a pass are those of one micro-batch with every episode as long as the context: the worst that can come. verl
0.9.1: weights, gradients and Adam's moments are float32 and sharded over the ranks; a pass gathers one layer after the
other in bfloat16, and keeps embedding and head; gradient checkpointing keeps the input of each layer.
"""

from dataclasses import dataclass

from skyrl_stack.launch.plan.model import Shape
from skyrl_stack.launch.plan.options import Options

TRAINER_CONTEXT = 1.5e9
"CUDA's context, NCCL's buffers and what the allocator loses, of the trainer's process."
VLLM_ASLEEP = 2.0e9
"What vLLM keeps asleep: its CUDA context, its graphs, buffers outside its memory pool."
VLLM_GRAPHS = 1.0e9
"CUDA graphs and NCCL, within vLLM's share."

LOGITS_UPDATE = 8
"""Bytes a token and vocabulary entry in the update: bfloat16 logits, their copy without padding, float32 log-softmax.
The backward pass frees as it goes. (Seen with verl's own function: 7.9.)"""
LOGITS_FORWARD = 10
"Without gradients, but with the entropy: bfloat16 logits, and softmax and its product in float32. (Seen: 10.0.)"
FUSED_TOKENS = 512
"Tokens whose logits verl's fused kernel has at a time."
LAYER_INTERMEDIATE, LAYER_HIDDEN = 12, 32
"""Bytes a token, and intermediate or hidden unit, while the backward pass has one layer recomputed.
(Seen with a Qwen3 of several widths: 12.0, and 31 of which 2 a layer are kept anyway.)"""
VLLM_HIDDEN, VLLM_SAMPLING = 20, 16
"Bytes in vLLM's profiling run: a batched token and hidden unit; a sequence and vocabulary entry."


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    resident: float
    "FSDP between two passes, while vLLM works."
    vllm: float
    "vLLM's share."
    log_prob: float
    update: float
    logits: float
    "The part of `update` that grows with the vocabulary."
    kv_tokens: int
    "Tokens that fit into the caches of one replica of the policy."
    vllm_fixed: float
    "The part of `vllm` that is no cache: weights, activations, graphs."

    @property
    def rollout(self) -> float:
        return self.resident + self.vllm + TRAINER_CONTEXT

    @property
    def peak(self) -> float:
        return max(self.rollout, self.log_prob, self.update)


def estimate(shape: Shape, options: Options, gpu_memory: float, *, parameters: int | None = None) -> Memory:
    """Memory that a step needs on each GPU of `gpu_memory` bytes; `parameters` is the exact count, if it is known."""
    shard = (parameters or shape.parameters) / options.shards
    weights, optimizer = shard * options.weight_bytes, shard * 2 * options.weight_bytes
    always = (0 if options.offload_weights else weights) + (0 if options.offload_optimizer else optimizer)
    gathered = 2 * shape.root_parameters + 2 * 2 * shape.layer_parameters
    context = TRAINER_CONTEXT + (VLLM_ASLEEP if options.colocated else 0)

    kept = options.micro_tokens * 2 * shape.num_hidden_layers * shape.hidden_size
    layer = options.micro_tokens * (LAYER_INTERMEDIATE * shape.active_intermediate + LAYER_HIDDEN * shape.hidden_size)
    if not options.checkpointing:
        kept, layer = layer * shape.num_hidden_layers, 0
    logits = LOGITS_UPDATE * shape.vocab_size * _with_logits(options, options.micro_tokens)
    reduced = (2 + 4) * shape.root_parameters
    passes = gathered + reduced + kept + max(layer, logits)
    state = weights * 2 + optimizer if not options.offload_all else 0
    forward = LOGITS_FORWARD * shape.vocab_size * _with_logits(options, options.log_prob_tokens)
    before = weights + (0 if options.offload_optimizer else optimizer) if not options.offload_all else 0

    vllm = options.utilization * gpu_memory if options.colocated else 0
    fixed = _vllm_fixed(shape, options, parameters or shape.parameters)
    per_token = shape.kv_bytes_per_token / min(options.tensor_parallel, shape.num_key_value_heads)
    return Memory(
        resident=0 if options.offload_all else always,
        vllm=vllm,
        log_prob=before + gathered + forward + context,
        update=state + passes + context,
        logits=logits,
        kv_tokens=max(0, int((vllm - fixed) / per_token)),
        vllm_fixed=fixed,
    )


def _with_logits(options: Options, tokens: int) -> int:
    """How many of a pass's tokens have their logits in memory at a time."""
    return min(tokens, FUSED_TOKENS) if options.fused else tokens


def _vllm_fixed(shape: Shape, options: Options, parameters: int) -> float:
    """What vLLM takes of its share before there is a cache."""
    weights = 2 * parameters / options.tensor_parallel
    activations = options.batched_tokens * VLLM_HIDDEN * shape.hidden_size
    sampling = options.sequences * VLLM_SAMPLING * shape.vocab_size
    return weights + activations + sampling + VLLM_GRAPHS
