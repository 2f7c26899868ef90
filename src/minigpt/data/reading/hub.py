"""Where a download comes from in fact: mirrors, and the ways of Hugging Face's hub.

`MINIGPT_MIRROR=https://HOST/PLACE` fetches every address `https://SITE/FILE` from `https://HOST/PLACE/SITE/FILE`, for
machines that reach only a server of their own. `HF_ENDPOINT` stands for https://huggingface.co alone, as it does in
huggingface_hub. A file keeps its name in the cache, and its expected size and hash, wherever it came from.

The hub redirects to a store on another host, and says with that the SHA-256 of a large file (X-Linked-Etag), which is
then checked. An access token in `HF_TOKEN` goes to https://huggingface.co and nowhere else: where a redirect leads to
another host, it is left behind.
"""

import os
import re
import urllib.parse
import urllib.request
from typing import Any

from minigpt.config import RequestError

HUB = "https://huggingface.co"
MIRROR_VARIABLE, ENDPOINT_VARIABLE, TOKEN_VARIABLE = "MINIGPT_MIRROR", "HF_ENDPOINT", "HF_TOKEN"


def mirrored(url: str) -> str:
    """The address to fetch `url` from: itself, unless an environment variable names a mirror."""
    if (endpoint := os.environ.get(ENDPOINT_VARIABLE)) and url.startswith(f"{HUB}/"):
        return endpoint.rstrip("/") + url.removeprefix(HUB)
    if mirror := os.environ.get(MIRROR_VARIABLE):
        return f"{mirror.rstrip('/')}/{url.partition('://')[2]}"
    return url


def is_hub(url: str) -> bool:
    """Whether an address is the hub's own: scheme, host and port."""
    return urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(HUB)[:2]


def authorise(request: urllib.request.Request) -> None:
    """Add the access token, if there is one and the request goes to the hub. Redirects do not take it along."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token or not is_hub(request.full_url):
        return
    if not (token.isascii() and token.isprintable()):
        raise RequestError(f"{TOKEN_VARIABLE} holds characters that no access token has: set it to the token alone")
    request.add_unredirected_header("Authorization", f"Bearer {token}")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; `sha256` is then what the hub said that the file's SHA-256 is, or None."""

    sha256: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request that follows, authorised anew if it stays with the hub."""
        said = headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", said):  # of a small file it is a hash of Git's
            self.sha256 = said
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            authorise(request)
        return request
