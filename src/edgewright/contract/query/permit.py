"""What a fleet may be asked, signed by the offline keys, and what it is asked at present, by the online ones."""

import re
from urllib.parse import urlsplit

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion

__all__ = ["LiveQueries", "QueryPermit"]

_KEY = re.compile(r"[0-9a-f]{64}")
_MAX_TEMPLATES, _MAX_QUERIES = 64, 64


class QueryPermit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What devices of a class may be asked about a model; the releases' keys sign it.

    Attributes:
        model: Which.
        device_class: Whose.
        revision: Rises with each change; devices never go back.
        server_url: URL that answers are sent to.
        helper_public_key: X25519 key of the helper, hexadecimal; "" if there is none, and then only `secagg` is
            possible.
        templates: What may be asked.
    """

    model: str
    device_class: str
    revision: int
    server_url: str
    helper_public_key: str = ""
    templates: tuple[QueryTemplate, ...] = ()
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a permit that permits nothing definite."""
        checked_name("model", self.model)
        checked_name("device class", self.device_class)
        url = urlsplit(self.server_url)
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or url.query
            or url.fragment
            or "@" in url.netloc
        ):
            raise InputError(
                f"answers are sent to {self.server_url[:200]!r}", remedy="Give a URL such as https://sums.example."
            )
        if self.helper_public_key and not _KEY.fullmatch(self.helper_public_key):
            raise InputError(
                f"the helper's key is {self.helper_public_key[:80]!r}",
                remedy="Give 64 hexadecimal digits, as the helper shows.",
            )
        names = [template.name for template in self.templates]
        if self.revision < 1 or len(names) > _MAX_TEMPLATES or len(set(names)) < len(names):
            raise InputError(
                f"revision {self.revision} with the templates {names[:8]}",
                remedy=f"Give a revision from 1 on, and at most {_MAX_TEMPLATES} templates of different names.",
            )
        for template in self.templates:
            other = template.device_class != self.device_class or template.model not in ("", self.model)
            if other or ("helper" in template.backends and not self.helper_public_key):
                raise InputError(
                    f"template {template.name} is for {template.model or 'any model'} on {template.device_class},"
                    f" over {' or '.join(template.backends)}",
                    remedy="A permit's templates are for its own model and class, and name the helper's key if they"
                    " need one.",
                )

    def template(self, query: Query) -> QueryTemplate | None:
        """Return the template of a query, None if it is not permitted."""
        return next((each for each in self.templates if each.name == query.template), None)


class LiveQueries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What devices of a class are asked about a model at present; the online keys sign it.

    Attributes:
        model: Which.
        device_class: Whose.
        queries: Live ones.
    """

    model: str
    device_class: str
    queries: tuple[Query, ...] = ()
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse two of one name, and too many."""
        names = [query.id for query in self.queries]
        if len(set(names)) < len(names) or len(names) > _MAX_QUERIES:
            raise InputError(
                f"{len(names)} queries, {len(set(names))} of different names",
                remedy=f"Ask at most {_MAX_QUERIES} at once, each under its own name.",
            )
