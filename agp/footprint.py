"""How much memory a Gemma needs, from its shape alone: weights, keys and values, training. Estimates all."""

from dataclasses import dataclass

GB = 1e9
BITS = {"bf16": 16.0, "8 bits": 8.5, "4 bits": 4.5}  # a group of 64 adds a 16-bit scale and bias: half a bit a weight
RANK = 8
ROW = 1024  # tokens in a training row


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    parameters: int  # everything but the two tables
    embeddings: int
    per_layer: int  # the per-layer embedding table, which can stay on disk
    layers: int
    hidden: int
    streams: int  # residual streams a block keeps
    mlp: int  # widest
    sliding: int  # caches of sliding layers, 512 positions each at most
    full: int
    kv_width: int  # key and value heads x head width of a sliding layer
    full_kv_width: int
    context: int
    window: int = 512
    heads: int = 8

    def weights(self, bits: str, table_on_disk: bool) -> float:
        """Bytes in memory; the table on disk costs only the rows that are read."""
        return (self.parameters + self.embeddings + (0 if table_on_disk else self.per_layer)) * BITS[bits] / 8

    def cache(self, tokens: int) -> float:
        """Bytes of keys and values in 16 bits."""
        sliding = min(tokens, self.window) * self.sliding * self.kv_width
        return 2 * 2 * (sliding + tokens * self.full * self.full_kv_width)

    def longest(self, room: float) -> int:
        """Tokens of context that fit into `room` bytes, up to the model's own limit; 0 when none do."""
        window = self.cache(self.window)
        if room < window:
            return 0
        each = self.cache(self.window + 1) - window
        return min(self.context, self.window + int((room - window) / each))

    def training_fixed(self) -> float:
        """Bytes a LoRA run needs besides weights and rows: rank 8 on all linears, float32 with gradient and Adam."""
        linears = 9 * RANK * (self.hidden + self.mlp / 2) * self.layers
        return 16 * linears + 0.5 * GB  # working space for one dequantized or fused layer and the head's chunk

    def training_row(self) -> float:
        """Bytes a checkpointed row of 1,024 tokens needs: what each block keeps, and one block's peak."""
        kept = 2 * ROW * self.hidden * self.streams * self.layers
        peak = 4 * ROW * (4 * self.mlp + 6 * self.hidden * self.streams) + 3 * 4 * self.heads * ROW * ROW
        return kept + peak

    def rows(self, room: float) -> int:
        """Rows of 1,024 tokens a LoRA step can hold in `room` bytes beside the weights."""
        return max(0, int((room - self.training_fixed()) / self.training_row()))


SHAPES = [  # counted on the architecture (tests/test_footprint.py counts again)
    Shape(
        name="Gemma 4 E2B",
        parameters=1_877_105_920,
        embeddings=402_653_184,
        per_layer=2_348_810_240,
        layers=35,
        hidden=1536,
        streams=1,
        mlp=12_288,
        sliding=12,
        full=3,
        kv_width=256,
        full_kv_width=512,
        context=131_072,
    ),
    Shape(
        name="Gemma 4 E4B",
        parameters=3_973_352_448,
        embeddings=671_088_640,
        per_layer=2_818_572_288,
        layers=42,
        hidden=2560,
        streams=1,
        mlp=10_240,
        sliding=20,
        full=4,
        kv_width=512,
        full_kv_width=1024,
        context=131_072,
    ),
    Shape(
        name="Gemma 3n E2B",
        parameters=1_884_521_568,
        embeddings=537_395_200,
        per_layer=2_013_265_920,
        layers=30,
        hidden=2048,
        streams=4,
        mlp=8192,
        sliding=16,
        full=4,
        kv_width=512,
        full_kv_width=512,
        context=32_768,
    ),
    Shape(
        name="Gemma 3n E4B",
        parameters=3_949_030_128,
        embeddings=537_395_200,
        per_layer=2_348_810_240,
        layers=35,
        hidden=2048,
        streams=4,
        mlp=16_384,
        sliding=16,
        full=4,
        kv_width=512,
        full_kv_width=512,
        context=32_768,
    ),
]
