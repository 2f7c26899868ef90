"""The Modelfile with which Ollama takes a GGUF file: `ollama create NAME -f Modelfile`.

Ollama's templates are Go's, not Jinja. A model without a chat template completes the text as it is; one whose chat
template is ChatML gets that in Ollama's words; any other stays in the GGUF file, and Ollama takes the template of its
own that it finds to be the same.
"""

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minigpt.config import ModelConfig
from minigpt.interop.gguf.tokens import Vocabulary

COMPLETION = "{{ .Prompt }}"
CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
_TALK = [("system", "Be brief."), ("user", "Hello!"), ("assistant", "Hi."), ("user", " 2 + 2 ?\n")]


def modelfile(file: str, vocabulary: Vocabulary, config: ModelConfig) -> str:
    """The content, for a GGUF file beside it."""
    lines = [f"FROM ./{file}"]
    if vocabulary.chat_template is None:
        lines.append(f'TEMPLATE """{COMPLETION}"""')
    elif is_chatml(vocabulary.chat_template):
        lines.append(f'TEMPLATE """{CHATML}"""')
    lines.append(f"PARAMETER num_ctx {config.context_length}")
    lines += [f'PARAMETER stop "{token}"' for token in vocabulary.ends]
    return "\n".join(lines) + "\n"


def is_chatml(template: str) -> bool:
    """Whether a chat template writes a talk down as ChatML does, and nothing besides."""
    messages = [{"role": role, "content": content} for role, content in _TALK]
    expected = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in _TALK)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        written = environment.from_string(template).render(messages=messages, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, ArithmeticError):  # what a template of any kind may do
        return False
    return written == expected + "<|im_start|>assistant\n"
