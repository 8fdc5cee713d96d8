"""Steps that somebody ran on TPUs and published: the program, the slice and the seconds."""

import dataclasses

from benchmarks.calibration.decoder import Decoder
from benchmarks.calibration.image import Image
from benchmarks.calibration.video import Video

MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/blob/76bd53b0f44caf989c88189afadeb1062f9254f0/MaxText/configs"
RECIPES = "https://github.com/AI-Hypercomputer/tpu-recipes/blob/c8cfe2f689081d36701a101cd73a70965d80926b/training"
DIFFUSION = "https://github.com/AI-Hypercomputer/maxdiffusion/blob/7cfb8801d41d1728f0232cd7ee59e900a151fecf/README.md"


@dataclasses.dataclass(frozen=True)
class Case:
    """One published step."""

    model: Decoder | Image | Video
    topology: str
    mesh: dict[str, int]  # data, fsdp, tensor
    samples: int  # global batch
    source: str
    seconds: float = 0.0  # as published; 0: the source says the rate below
    tflops: float = 0.0  # per chip and second, by the source's own count
    vector_memory: int = 0  # KiB that a fusion may take, as the source's command says; 0: libtpu's own limit

    def published(self, chips: int) -> float:
        """Seconds of a step."""
        return self.seconds or sum(self.model.flops().values()) * self.samples / chips / self.tflops / 1e12


def _mesh(fsdp: int, data: int = 1, tensor: int = 1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


# MaxText's decoder of December 2023: base.yml at that commit, scaled by global_parameter_scale.
_SCALED = {"heads": 32, "head_dim": 256, "ffn": 32_768, "layers": 32, "vocab": 32_768, "length": 2048,
           "parallel": True, "activation": "relu"}
_LLAMA = {"head_dim": 128, "kv_heads": 8, "gated": True, "tied": False}
_LLAMA_70B = _LLAMA | {"dim": 8192, "layers": 80, "heads": 64, "ffn": 28_672}

CASES = {
    "MaxText 16B, v5e-256": Case(
        Decoder(dim=5120, **_SCALED), "v5e:16x16", _mesh(256), 256 * 6, f"{MAXTEXT}/v5e/README.md", tflops=120),
    "MaxText 32B, v5e-256": Case(
        Decoder(dim=10_240, **_SCALED), "v5e:16x16", _mesh(256), 256 * 4, f"{MAXTEXT}/v5e/README.md", tflops=132),
    "MaxText 64B, v5e-256": Case(
        Decoder(dim=10_240, **_SCALED | {"layers": 64}), "v5e:16x16", _mesh(256), 256 * 2, f"{MAXTEXT}/v5e/README.md",
        tflops=118),
    "MaxText 32B, v5p-128": Case(
        Decoder(dim=10_240, remat="dots", **_SCALED), "v5p:4x4x4", _mesh(16, tensor=4), 64 * 8,
        f"{MAXTEXT}/v5p/README.md", tflops=328),
    "Wan 2.1 14B, v5p-8": Case(
        Video(tile=1024, fused=False, text_places=1024), "v5p:2x2x1", _mesh(4), 1, f"{DIFFUSION}#L300",
        seconds=36.01, vector_memory=65_536),
    "FLUX.1-dev 12B, v5p-8": Case(
        Image(tile=1536), "v5p:2x2x1", _mesh(4), 8, f"{DIFFUSION}#L403", seconds=1.769),
    "GPT-3 175B, v6e-256": Case(
        Decoder(dim=12_288, layers=96, heads=96, ffn=49_152, vocab=50_304, length=2048, rotary=False,
                activation="gelu", tile=1024),
        "v6e:16x16", _mesh(256), 256 * 3, f"{RECIPES}/trillium/GPT3-175B-MaxText/bf16/README.md", seconds=17.182,
        vector_memory=98_304),
    "Llama 2 70B, v6e-256": Case(
        Decoder(**_LLAMA_70B, vocab=32_000, length=4096, remat="query+key+value", offload=True, tile=1024),
        "v6e:16x16", _mesh(256), 256 * 2, f"{RECIPES}/trillium/Llama2-70B-MaxText/README.md",
        seconds=9.052, vector_memory=98_304),  # the source names 3 samples a chip; its log line counts the tokens of 2
    "Llama 3.1 8B, v6e-256": Case(
        Decoder(**_LLAMA, dim=4096, layers=32, heads=32, ffn=14_336, vocab=128_256, length=8192,
                remat="layer_input+query+key+value+out", offload=True, tile=2048, fused=True),
        "v6e:16x16", _mesh(256), 256 * 4, f"{RECIPES}/trillium/Llama3.1-8B-MaxText/v6e-256/README.md", seconds=4.546,
        vector_memory=98_304),
    "Llama 3.1 70B, v7x-128": Case(
        Decoder(**_LLAMA_70B, vocab=128_256, length=8192, remat="layer_input+query+key+value+context", tile=2048,
                fused=True, moment="bfloat16"),
        "v7x:4x4x4", _mesh(128), 256, f"{RECIPES}/ironwood/README.md", seconds=12.20,
        vector_memory=65_536),
    "Wan 2.1 14B, v7x-128": Case(
        Video(tile=2048, fused=True, text_places=512), "v7x:4x4x4", _mesh(4, data=32), 32,
        f"{RECIPES}/ironwood/README.md", seconds=24.58, vector_memory=65_536),
}
