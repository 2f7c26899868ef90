"""Every family of Hugging Face models that minigpt reads and writes, by the `model_type` of its config.json."""

from minigpt.interop.huggingface.deepseek import DeepseekV2, DeepseekV3, Dots1, Glm4Moe
from minigpt.interop.huggingface.family import Family
from minigpt.interop.huggingface.gemma import Gemma, Gemma2, Gemma3
from minigpt.interop.huggingface.gpt2 import GPT2
from minigpt.interop.huggingface.layernorm import GPTNeoX, StableLm, Starcoder2
from minigpt.interop.huggingface.llama import Llama, Mistral, Qwen2, Qwen3
from minigpt.interop.huggingface.mixtures import Mixtral, Olmoe, Qwen2Moe, Qwen3Moe
from minigpt.interop.huggingface.olmo import Exaone4, Olmo, Olmo2, Olmo3
from minigpt.interop.huggingface.relatives import Arcee, Granite, NanoChat, Phi3

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GPT2(),
        Llama(),
        Mistral(),
        Qwen2(),
        Qwen3(),
        Olmo2(),
        Olmo3(),
        Olmo(),
        Exaone4(),
        Granite(),
        Arcee(),
        Starcoder2(),
        StableLm(),
        GPTNeoX(),
        Gemma(),
        Gemma2(),
        Gemma3(),
        NanoChat(),
        Phi3(),
        Qwen3Moe(),
        Mixtral(),
        Qwen2Moe(),
        Olmoe(),
        Dots1(),
        Glm4Moe(),
        DeepseekV3(),
        DeepseekV2(),
    )
}
