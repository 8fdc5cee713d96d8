"""UMT5's encoder beside transformers' on random weights, the published layout, and prompts on the way to tokens."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from transformers import UMT5Config, UMT5EncoderModel

from world_model.encoders import names as encoder_names
from world_model.encoders import tokenizer
from world_model.encoders.umt5 import Umt5Spec, Umt5Text, buckets

SPEC = Umt5Spec(vocabulary=50, dim=24, heads=3, head_dim=8, ffn_dim=40, layers=2)
MIDDLE = Umt5Spec(vocabulary=1000, dim=256, heads=8, head_dim=32, ffn_dim=640, layers=8)  # 6 M weights


@functools.cache
def oracle(spec):
    torch.manual_seed(0)
    return UMT5EncoderModel(UMT5Config(
        vocab_size=spec.vocabulary, d_model=spec.dim, d_kv=spec.head_dim, d_ff=spec.ffn_dim, num_layers=spec.layers,
        num_heads=spec.heads, feed_forward_proj="gated-gelu", initializer_factor=2.0)).eval()


def params_of(model, spec):
    tensors = {key: p.detach().numpy() for key, p in model.state_dict().items()}
    table = encoder_names.umt5(spec.layers)["diffusers"]
    assert tensors.keys() == {e.published for e in table.entries} | {copy for copy, _ in table.copies}
    params = {name: np.empty(x.shape, np.float32) for name, x in Umt5Text(160, spec).shapes().items()}
    for e in table.entries:
        e.slice_of(params[e.native])[...] = e.transform.to_native(tensors[e.published], 0)
    return params


@pytest.mark.parametrize("spec", [SPEC, MIDDLE], ids=["tiny", "middle"])
@torch.no_grad()
def test_as_transformers(spec):
    """Positions are up to 159 apart, prompts have different lengths, and features are zero past each."""
    rng = np.random.default_rng(0)
    ids, length = rng.integers(1, spec.vocabulary, (2, 160)), np.array([160, 37])
    mask = np.arange(160) < length[:, None]
    model = oracle(spec)
    for p in model.parameters():
        if p.ndim == 1:
            p.uniform_(0.5, 1.5)
    expected = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    features = jax.jit(Umt5Text(160, spec).encode)(params_of(model, spec), ids, length)
    assert np.abs(features - expected)[mask].max() < 1e-4 * np.abs(expected[mask]).max()
    assert (np.asarray(features)[~mask] == 0).all() and features.dtype == jnp.float32
    halved = {name: jnp.asarray(x, jnp.bfloat16) for name, x in params_of(model, spec).items()}
    low = jax.jit(Umt5Text(160, spec, dtype="bfloat16").encode)(halved, ids, length)
    halved_oracle = copy.deepcopy(model).bfloat16()(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    error, oracle_error = (np.abs(x - expected)[mask].mean() for x in (low, halved_oracle.last_hidden_state.float().numpy()))
    assert low.dtype == jnp.float32 and 0 < error < 1.5 * oracle_error  # rounds no more than transformers does


def test_buckets():
    attention = oracle(SPEC).encoder.block[0].layer[0].SelfAttention
    distance = np.arange(512)[None] - np.arange(512)[:, None]
    expected = attention._relative_position_bucket(torch.from_numpy(distance)).numpy()
    np.testing.assert_array_equal(buckets(512, 32, 128), expected)


def test_published_shapes():
    """242 tensors, 5,680,910,336 parameters, by the names of the original file."""
    shapes = encoder_names.published_shapes(encoder_names.umt5(24)["wan"], Umt5Text(512).shapes())
    assert len(shapes) == 242 and sum(x.size for x in shapes.values()) == 5_680_910_336
    assert shapes["token_embedding.weight"].shape == (256_384, 4096)
    assert shapes["blocks.23.ffn.gate.0.weight"].shape == (10_240, 4096)
    assert shapes["blocks.0.pos_embedding.embedding.weight"].shape == (32, 64)
    assert shapes["blocks.7.attn.o.weight"].shape == (4096, 4096) and shapes["norm.weight"].shape == (4096,)


def test_clean():
    assert tokenizer.clean("  push&amp;amp;pull \n the\u00a0 &quot;T&quot; ") == 'push&pull the "T"'
    assert tokenizer.clean("caf\u00c3\u00a9") == "caf\u00e9"  # UTF-8 once read as Latin-1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer of each kind, made on the spot; id 1 ends a text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {"<pad>": 0, "</s>": 1, "<unk>": 2, "push": 3, "the": 4, "block": 5}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.enable_padding(length=9)
    words.enable_truncation(2)
    words.save(str(folder / "tokenizer.json"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["push the block", "pull the block back", "the red block"] * 20), vocab_size=24,
        model_prefix=str(folder / "spiece"), pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        hard_vocab_limit=False)
    return folder


def test_tokenize(files):
    text = Umt5Text(6, SPEC, tokenizer=str(files / "tokenizer.json"))
    ids, length = text.tokenize("push  the\nblock")
    np.testing.assert_array_equal(ids, [3, 4, 5, 1, 0, 0])
    assert length == 4 and ids.dtype == np.int32
    with pytest.raises(ValueError, match=r"has 7 tokens, model.text_length = 6"):
        text.tokenize("push the block push the block")
    ids, length = Umt5Text(40, SPEC, tokenizer=str(files / "spiece.model")).tokenize("push the block")
    assert ids[length - 1] == 1 and (ids[length:] == 0).all() and (ids[:length] > 0).all()


def test_no_tokenizer(tmp_path):
    for path in ("google/umt5-xxl", str(tmp_path / "tokenizer.json")):
        with pytest.raises(ValueError, match=r"encoders.tokenizer = .*give a local file"):
            Umt5Text(6, SPEC, tokenizer=path).tokenize("push")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"broken.json: not a tokenizer"):
        Umt5Text(6, SPEC, tokenizer=str(tmp_path / "broken.json")).tokenize("push")
