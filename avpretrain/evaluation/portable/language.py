"""Classes for `transformers` that run a language model in OpenELM's layout; exported as source, not imported here.

B texts, L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from avpretrain.methods.openelm.conversions.huggingface import foreign_names, shape_of
from avpretrain.nn.causal_stack import CausalStack


class OpenELMConfig(PretrainedConfig):
    """Sizes as the layout has them: heads and multipliers of hidden widths by layer."""

    model_type = "openelm"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_transformer_layers",
        "max_position_embeddings": "max_context_length",
    }

    def __init__(self, vocab_size=0, model_dim=0, num_transformer_layers=0, max_context_length=0, **kwargs):  # type: ignore[no-untyped-def]
        self.vocab_size, self.model_dim = vocab_size, model_dim
        self.num_transformer_layers, self.max_context_length = num_transformer_layers, max_context_length
        super().__init__(**kwargs)


class OpenELMForCausalLM(PreTrainedModel, GenerationMixin):
    """Tokens to logits of the next. Without a cache: generation computes a text anew for each token."""

    config_class = OpenELMConfig
    main_input_name = "input_ids"

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        shape = shape_of(config.to_dict(), "the config")
        self.stack = CausalStack(
            shape.vocabulary, shape.width, shape.head_width, shape.heads, shape.kv_heads, shape.hidden, shape.rope_base
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Reads a folder or repository; its names of weights are the layout's."""
        names = foreign_names(1)  # of layer 0, which stands for all
        mapping = {
            "^" + theirs.replace("layers.0.", r"layers\.(\d+)."): "stack." + ours.replace("blocks.0.", r"blocks.\1.")
            for theirs, ours in names.items()
        }
        return super().from_pretrained(*args, key_mapping=mapping, **kwargs)

    def _init_weights(self, module: Any) -> None:
        pass

    def get_input_embeddings(self) -> Any:
        """Of the stack, which reads logits off by them, too."""
        return self.stack.embed

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        """The whole text so far."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits [B, L, V], and with labels the mean negative log-likelihood of each token after those before it.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L], 0 where a text is padded, at its beginning or its end; none = nowhere.
            labels: [B, L], the tokens again; -100 where none is to be predicted.
        """
        real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        logits = self.stack.logits(input_ids, None, real)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
