"""Which tokenizers matter to the bundles of the settings."""

from pipeline.base import plugins
from pipeline.settings.params import Params


def named(params: Params) -> list[str]:
    """Those that the code of a bundle calls, and those that read its folder."""
    made = [plugins.load("bundle", platform) for platform in params.bundles]
    return sorted({name for one in made for name in (*one.TOKENIZERS, *getattr(one, "BESIDE", ()))})
