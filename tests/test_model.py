"""The model, on every architecture among the presets at a toy size."""

import math

import pytest
import torch
from helpers import ARCHITECTURES, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from modeling_gptlite import (
    GPTLiteForCausalLM,
    GPTLiteForQuestionAnswering,
    GPTLiteForSequenceClassification,
    GPTLiteForTokenClassification,
    GPTLiteModel,
)
from modeling_gptlite.modeling_gptlite import GPTLiteLinear, GPTLiteRMSNorm, GPTLiteRotaryEmbedding


every_architecture = pytest.mark.parametrize("preset", ARCHITECTURES)


def random_ids(*shape, seed=1):
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


@every_architecture
def test_initial_weights_have_the_configured_spread(preset):
    model = tiny_model(preset, hidden_size=128, num_hidden_layers=4, initializer_range=0.03)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.03 / math.sqrt(2 * 4) if residual else 0.03
            assert parameter.std().item() == pytest.approx(expected, rel=0.04), name
            assert abs(parameter.mean().item()) < 0.1 * expected, name


@every_architecture
def test_the_first_loss_is_that_of_guessing(preset):
    ids = random_ids(8, 32)
    assert tiny_model(preset)(ids, labels=ids).loss.item() == pytest.approx(math.log(65), abs=0.1)


@every_architecture
def test_one_batch_can_be_learnt_by_heart(preset):
    model = tiny_model(preset, hidden_size=64).train()
    ids = random_ids(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@every_architecture
def test_accumulated_gradients_equal_those_of_the_larger_batch(preset):
    model, ids = tiny_model(preset), random_ids(4, 16)
    ids_or_ignored = ids.clone()
    ids_or_ignored[0, 3:] = -100  # micro-batches with different numbers of targets
    targets = ids_or_ignored[:, 1:].ne(-100).sum()

    model(ids, labels=ids_or_ignored, num_items_in_batch=targets).loss.backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        model(ids[half], labels=ids_or_ignored[half], num_items_in_batch=targets).loss.backward()
    assert_close([p.grad for p in model.parameters()], whole)


@every_architecture
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_logits_equal_uncached_ones(preset, cache):
    model, ids = tiny_model(preset), random_ids(2, 20)
    if cache == "dynamic":
        past = DynamicCache(config=model.config)
    else:
        past = StaticCache(config=model.config, max_cache_len=20)
    steps = [model(part, past_key_values=past, use_cache=True).logits for part in ids.split([7, 1, 1, 11], dim=1)]
    assert_close(torch.cat(steps, dim=1), model(ids, use_cache=False).logits)


@every_architecture
def test_left_padding_changes_nothing(preset):
    model, ids = tiny_model(preset), random_ids(1, 10)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 6 + [1] * 10])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits
    assert_close(logits[:, 6:], model(ids).logits)


@every_architecture
def test_explicit_positions_are_honoured(preset):
    model, ids = tiny_model(preset), random_ids(2, 8)
    implied = model(ids).logits
    assert_close(model(ids, position_ids=torch.arange(8)[None]).logits, implied)
    scattered = torch.tensor([[0, 2, 3, 7, 11, 13, 20, 31]])
    assert (model(ids, position_ids=scattered).logits - implied).abs().max() > 1e-4


def test_packed_sequences_do_not_see_each_other():
    model, ids = tiny_model("modern-1m"), random_ids(1, 12)
    packed = model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]), use_cache=False).logits
    assert_close(packed, torch.cat([model(ids[:, :5]).logits, model(ids[:, 5:]).logits], dim=1))


@pytest.mark.parametrize(
    ("preset", "implementation"),
    [*((preset, "sdpa") for preset in ARCHITECTURES), ("modern-1m", "flex_attention")],  # flex compiles for seconds
)
@torch.no_grad()
def test_attention_implementations_agree(preset, implementation):
    model, ids = tiny_model(preset), random_ids(2, 16)
    model.set_attn_implementation("eager")
    expected = model(ids).logits
    model.set_attn_implementation(implementation)
    assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_grouped_queries_equal_repeated_heads():
    few = tiny_model("modern-1m", num_key_value_heads=2)
    many = tiny_model("modern-1m")
    weights = few.state_dict()
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.view(2, 8, 32)
            weights[name] = heads.repeat_interleave(2, dim=0).reshape(32, 32)
    many.load_state_dict(weights)
    assert_close(few(random_ids(2, 9)).logits, many(random_ids(2, 9)).logits)


@every_architecture
def test_embeddings_can_be_given_instead_of_ids(preset):
    model, ids = tiny_model(preset), random_ids(2, 8)
    assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))


@every_architecture
def test_logits_to_keep_limits_the_logits(preset):
    model, ids = tiny_model(preset), random_ids(2, 8)
    logits = model(ids).logits
    assert_close(model(ids, logits_to_keep=3).logits, logits[:, -3:])
    assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


@every_architecture
def test_hidden_states_and_attentions_come_out(preset):
    model = tiny_model(preset)
    model.set_attn_implementation("eager")
    output = model(random_ids(2, 8), output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in output.hidden_states] == [(2, 8, 32)] * 3
    assert [a.shape for a in output.attentions] == [(2, 4, 8, 8)] * 2
    assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 8))
    assert not output.attentions[0].triu(1).any()


@every_architecture
def test_gradient_checkpointing_changes_no_gradient(preset):
    model, ids = tiny_model(preset).train(), random_ids(2, 8)
    model(ids, labels=ids).loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    assert_close([p.grad for p in model.parameters()], plain)


@every_architecture
def test_forward_compiles_as_one_graph(preset):
    model, ids = tiny_model(preset), random_ids(2, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(ids, labels=ids).logits, model(ids).logits)


@every_architecture
def test_compiled_attention_is_causal_without_a_mask(preset):
    """On a GPU, the flash kernel takes no mask; transformers builds one whenever a model is compiled."""
    calls = []

    def read_the_graph(graph, inputs):
        calls.extend(node.kwargs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target))
        return graph.forward

    model, ids = tiny_model(preset), random_ids(2, 8)
    torch.compile(model, fullgraph=True, backend=read_the_graph)(ids, shift_labels=ids, use_cache=False)
    assert [(call["attn_mask"], call["is_causal"]) for call in calls] == [(None, True)] * 2


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 5), (16,), (17,), ()])
@pytest.mark.parametrize(("outputs", "bias"), [(12, False), (12, True), (7, True)])
def test_a_layer_computes_the_same_for_few_tokens(outputs, bias, shape):
    torch.manual_seed(0)
    layer, x = GPTLiteLinear(16, outputs, bias=bias), torch.randn(*shape, 16)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert_close(layer(x), expected)
        assert_close(layer.bfloat16()(x.bfloat16()).float(), expected, atol=0.05, rtol=0.05)


def test_few_tokens_are_normalised_as_many_are():
    torch.manual_seed(0)
    norm, x = GPTLiteRMSNorm(8, eps=1e-3), torch.randn(2, 3, 8)
    torch.nn.init.normal_(norm.weight)
    with torch.no_grad():
        assert_close(norm(x), torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-3))
        assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@every_architecture
def test_bf16_is_close_to_fp32(preset):
    model, ids = tiny_model(preset), random_ids(2, 16)
    expected = model(ids, labels=ids).loss
    assert_close(model.bfloat16()(ids, labels=ids).loss.float(), expected, atol=0.02, rtol=0)
    assert model(ids).logits.dtype == torch.bfloat16


@every_architecture
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_is_bit_equal(preset, tied, tmp_path):
    model, ids = tiny_model(preset, tie_word_embeddings=tied), random_ids(2, 8)
    model.save_pretrained(tmp_path)
    loaded = GPTLiteForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}


@every_architecture
def test_a_model_from_the_meta_device_is_whole(preset, tmp_path):
    with torch.device("meta"):
        model = GPTLiteForCausalLM(tiny_config(preset))
    model.to_empty(device="cpu")
    model.init_weights()
    reference = tiny_model(preset)
    assert not any(p.isnan().any() for p in model.parameters())
    assert_close(dict(model.named_buffers()), dict(reference.named_buffers()))
    residual = model.model.layers[0].mlp.down_proj.weight.std()
    assert residual.item() == pytest.approx(0.02 / math.sqrt(4), rel=0.1)


@every_architecture
def test_the_vocabulary_can_grow(preset):
    model, ids = tiny_model(preset), random_ids(2, 8)
    before = model(ids).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.config.vocab_size == 70
    assert_close(model(ids).logits[..., :65], before)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 11)


@every_architecture
def test_dropout_acts_in_training_only(preset):
    model = tiny_model(preset, attention_dropout=0.5, hidden_dropout=0.5, embedding_dropout=0.5)
    ids = random_ids(2, 8)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("preset", ["classic-10m", "gpt2-124m"])
def test_learned_positions_refuse_more_tokens_than_they_have(preset):
    with pytest.raises(ValueError, match="33 tokens do not fit the context of 32"):
        tiny_model(preset)(random_ids(1, 33))


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
def test_rope_scaling_comes_through_the_config(rope):
    ids = random_ids(1, 16)
    scaled = tiny_model("modern-1m", rope_parameters={"rope_theta": 10000.0, **rope})
    assert (scaled(ids).logits - tiny_model("modern-1m")(ids).logits).abs().max() > 1e-4


def rotary_tables(tokens: int, **rope):
    rotary = GPTLiteRotaryEmbedding(tiny_config("modern-1m", rope_parameters={"rope_theta": 10000.0, **rope}))
    return rotary(torch.zeros(1, tokens, 32), torch.arange(tokens)[None])


def test_rotary_frequencies_scale_as_the_common_suite_of_transformers_expects():
    """Its `test_model_rope_scaling_frequencies`, which takes the tables as `B T D`."""
    context, factor = 32, 10
    short, long = (rotary_tables(tokens, rope_type="default") for tokens in (context, 2 * context))
    assert [table.shape for table in long] == [(1, 2 * context, 8)] * 2
    assert_close(short, tuple(table[:, :context] for table in long))
    linear = rotary_tables(2 * context, rope_type="linear", factor=factor)
    assert_close(tuple(table[:, ::factor] for table in linear), tuple(table[:, :7] for table in long))
    assert_close(rotary_tables(context, rope_type="dynamic", factor=factor), short)
    for rope_type in ("dynamic", "yarn"):
        scaled = rotary_tables(2 * context, rope_type=rope_type, factor=factor)
        assert not any(torch.allclose(*tables) for tables in zip(scaled, long, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_the_modern_architecture_is_qwen3(tied):
    model = tiny_model("modern-1m", tie_word_embeddings=tied, num_key_value_heads=2)
    names = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
        *("num_key_value_heads", "max_position_embeddings", "hidden_act", "rope_parameters", "tie_word_embeddings"),
    ]
    fields = {name: getattr(model.config, name) for name in names}
    qwen = Qwen3ForCausalLM(Qwen3Config(**fields, rms_norm_eps=model.config.norm_eps)).eval()
    qwen.load_state_dict(model.state_dict())
    ids = random_ids(2, 16)
    assert_close(model(ids).logits, qwen(ids).logits, atol=1e-6, rtol=1e-5)


@every_architecture
def test_the_plans_name_modules_that_exist(preset):
    model = tiny_model(preset)
    modules = {name for name, _ in model.model.named_modules()}
    assert {name.replace("*", "0") for name in model.config.base_model_tp_plan} <= modules
    assert model.config.base_model_pp_plan.keys() <= modules
    assert model._tp_plan.keys() >= {"lm_head"}


@every_architecture
def test_the_base_model_answers_other_engines_calls(preset):
    """vLLM's Transformers backend calls the base model so, and takes the first element."""
    model = GPTLiteModel(tiny_config(preset)).eval()
    ids = random_ids(1, 8)
    embeds = model.get_input_embeddings()(ids)
    called = model(
        input_ids=None, inputs_embeds=embeds, position_ids=torch.arange(8)[None], use_cache=False, return_dict=False
    )
    assert called[0].shape == (1, 8, 32)
    assert_close(called[0], model(ids).last_hidden_state)


def test_an_outside_engine_brings_its_own_attention():
    """vLLM registers one; it reads the layer's number and the scaling, and gets every keyword of the call."""
    seen = []

    def attention(module, query, key, value, attention_mask, scaling, engine_state=None, **kwargs):
        seen.append((module.layer_idx, scaling, engine_state, query.shape))
        return torch.zeros(*query.shape[:1], query.shape[2], *query.shape[1::2]), None

    AttentionInterface.register("engine", attention)
    AttentionMaskInterface.register("engine", lambda **kwargs: None)
    model = tiny_model("modern-1m").model
    model.set_attn_implementation("engine")
    model(random_ids(1, 8), use_cache=False, engine_state="pages")
    assert seen == [(layer, 8**-0.5, "pages", (1, 4, 8, 8)) for layer in (0, 1)]


@every_architecture
@pytest.mark.parametrize(
    ("head", "labels"),
    [
        (GPTLiteForSequenceClassification, {"labels": torch.tensor([0, 2])}),
        (GPTLiteForTokenClassification, {"labels": torch.zeros(2, 8, dtype=torch.long)}),
        (GPTLiteForQuestionAnswering, {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}),
    ],
)
def test_task_heads_train(preset, head, labels):
    config = tiny_config(preset, pad_token_id=64)
    config.num_labels = 2 if head is GPTLiteForQuestionAnswering else 3
    model = head(config)
    loss = model(random_ids(2, 8), **labels).loss
    loss.backward()
    assert loss.item() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_the_cache_has_both_of_its_names():
    """transformers 5.24 renamed `past_key_values` to `cache`."""
    model, ids = tiny_model("modern-1m"), random_ids(1, 10)
    whole = model(ids).logits[:, -1]
    for name in ("past_key_values", "cache"):
        cache = DynamicCache(config=model.config)
        model(ids[:, :9], **{name: cache}, use_cache=True)
        assert_close(model(ids[:, 9:], **{name: cache}).logits[:, -1], whole)
        assert cache.get_seq_length() == 10
