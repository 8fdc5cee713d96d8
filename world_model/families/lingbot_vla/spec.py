"""Sizes of LingBot-VLA, version 1 and 2: one family, whose differences are values."""

import dataclasses

from world_model.families.base.spec import Spec

MERGE = 2  # patches along each side of a view's token
# JSON has lists in their place.
TUPLES = ("rope_sections", "view_markers", "teachers", "vision_full_layers", "vision_taps", "lora_stacks")
HEADS = ("current_depth", "future_depth", "current_video", "future_video")  # heads of teachers, by moment and kind
TEMPORAL_PATCH = 2  # frames of a patch; a single picture stands in both


@dataclasses.dataclass(frozen=True, kw_only=True)
class LingBotVLASpec(Spec):
    """Sizes; defaults and units in config.py. dim, ffn_dim, num_heads and num_layers are the language model's."""

    kv_heads: int
    head_width: int
    expert_dim: int
    expert_ffn_dim: int
    vocab_size: int
    text_length: int
    views: int
    qkv_bias: bool
    qk_norm: bool
    rope_theta: float
    rope_sections: tuple[int, ...]
    prefix: str
    prompt: str
    view_markers: tuple[int, ...]
    query_tokens: int
    query_seeds: int
    experts: int
    experts_per_token: int
    routed_ffn_dim: int
    shared_ffn_dim: int
    routed_scale: float
    vision: str
    vision_dim: int
    vision_ffn_dim: int
    vision_heads: int
    vision_layers: int
    vision_patch: int
    vision_window: int
    vision_full_layers: tuple[int, ...]
    vision_taps: tuple[int, ...]
    vision_positions: int
    actions_see_future: bool = True
    depth_queries: int = 0
    depth_queries_learned: bool = True
    teachers: tuple[str, ...] = ()
    teacher_width: int = 1024
    teacher_heads: int = 4  # attention heads in what learns a teacher's features; no key: nobody has published others
    teacher_head_width: int = 32
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_stacks: tuple[str, ...] = ("language",)
    lora_pattern: str = r"self_attn\.[qkvo]$|mlp\.(gate|fc1|fc2)$"

    def __post_init__(self):
        for name in TUPLES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_heads()
        self._check_choices()
        self._check_prefix()
        self._check_vision()

    def _check_choices(self) -> None:
        if self.attention == "flash":
            raise ValueError("model.attention = 'flash' is a kernel for tables of blocks, and masks here differ "
                             "between samples: blockwise, or cudnn on GPUs")
        if self.vision not in ("qwen2_5", "qwen3"):
            raise ValueError(f"model.vision = {self.vision!r}: expected qwen2_5 or qwen3")
        if unknown := set(self.lora_stacks) - {"vision", "language", "expert"}:
            raise ValueError(f"model.lora_stacks names {sorted(unknown)[0]!r}: there are vision, language and expert")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"model.experts_per_token = {self.experts_per_token}: expected 1 to model.experts = "
                             f"{self.experts}")

    def _check_prefix(self) -> None:
        if self.prefix not in ("joint", "causal"):
            raise ValueError(f"model.prefix = {self.prefix!r}: expected joint (one block) or causal")
        if self.prompt.count("{}") != 1:
            raise ValueError(f"model.prompt = {self.prompt!r}: expected one {{}}, where the instruction stands")
        if len(self.view_markers) not in (0, 2):
            raise ValueError(f"model.view_markers = {self.view_markers}: expected none, or the ids of two tokens, "
                             "before and after a view's")
        if self.query_tokens and self.prefix != "causal":
            raise ValueError(f"model.query_tokens = {self.query_tokens}: they stand behind the text, in a prefix that "
                             "is causal (model.prefix)")
        for name in ("query_tokens", "depth_queries"):
            if (count := getattr(self, name)) and self.query_seeds % count:
                raise ValueError(f"model.query_seeds = {self.query_seeds} does not divide into model.{name} = {count} "
                                 "groups")
        if self.depth_queries and (self.prefix != "joint" or self.rope_sections):
            raise ValueError(f"model.depth_queries = {self.depth_queries}: version 1's, in a prefix that is joint "
                             "(model.prefix) and has its positions on a line (model.rope_sections = ())")
        if unknown := set(self.teachers) - set(HEADS if self.query_tokens else ()):
            raise ValueError(f"model.teachers names {sorted(unknown)[0]!r}: there are {', '.join(HEADS)}, where "
                             f"model.query_tokens (here {self.query_tokens}) is positive")

    def _check_vision(self) -> None:
        side = MERGE * self.vision_patch
        for name in ("height", "width"):
            if (pixels := getattr(self.layout, name)) % side:
                raise ValueError(f"layout.{name} = {pixels} does not divide into tokens of {side} pixels "
                                 f"({MERGE} x model.vision_patch); nearest: {max(1, round(pixels / side)) * side}")
        if self.vision_taps and len(self.vision_taps) >= self.num_layers:
            raise ValueError(f"model.vision_taps has {len(self.vision_taps)} layers, the language model "
                             f"{self.num_layers}: each tap goes into a layer before the last")

    def _check_heads(self) -> None:
        if self.num_heads % self.kv_heads:
            raise ValueError(f"model.kv_heads = {self.kv_heads} does not divide model.num_heads = {self.num_heads}")
        if self.head_width % 2 or self.vision_dim % self.vision_heads or self.vision_dim // self.vision_heads % 4:
            raise ValueError(f"model.head_width = {self.head_width}, model.vision_dim / model.vision_heads = "
                             f"{self.vision_dim} / {self.vision_heads}: a head's width is even, a vision head's "
                             "divides by 4 (rows and columns are rotated apart)")
        if self.rope_sections and 2 * sum(self.rope_sections) != self.head_width:
            raise ValueError(f"model.rope_sections = {self.rope_sections} add up to {sum(self.rope_sections)}, half of "
                             f"model.head_width is {self.head_width // 2}")

    @property
    def head_dim(self) -> int:
        return self.head_width

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns of a view."""
        return self.layout.height // self.vision_patch, self.layout.width // self.vision_patch

    @property
    def patches(self) -> int:
        """Patches of a view."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Values of a patch: channel, frame, row, column."""
        return 3 * TEMPORAL_PATCH * self.vision_patch**2

    @property
    def view_tokens(self) -> int:
        """Picture tokens of a view."""
        return self.patches // MERGE**2

    @property
    def queries(self) -> int:
        """Query tokens of a prefix: for the present, then for the future."""
        return 2 * self.query_tokens

    @property
    def depth_tokens(self) -> slice:
        """Where in the prefix the views' depth queries stand."""
        start = self.views * (self.view_tokens + len(self.view_markers))
        return slice(start, start + self.views * self.depth_queries)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before state and actions."""
        return self.depth_tokens.stop + self.text_length + self.queries

    @property
    def training_tokens(self) -> int:
        return self.prefix_tokens + 1 + self.layout.actions_per_block

    def kept_values(self, wide: float, hidden: float) -> float:
        """See `Spec`. Of nine D-wide arrays three are cross-attention's, which is not here; a gated MLP has two wide
        ones."""
        def stack(tokens: int, layers: int, dim: int, ffn_dim: int) -> float:
            return tokens * layers * (wide * 6 / 9 * dim + 2 * hidden * ffn_dim)

        return (stack(self.prefix_tokens, self.num_layers, self.dim, self.ffn_dim)
                + stack(self.views * self.patches, self.vision_layers, self.vision_dim, self.vision_ffn_dim))

    @property
    def frame_tokens(self) -> int:
        return self.views * self.view_tokens
