"""GET, DELETE and cancel of stored responses, and the pages of their input items."""

from lmlite.errors import BadRequest, NotFound
from lmlite.messages import Json
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.route import Query

MAX_PAGE, PAGE = 100, 20  # input items of a page: at most, and unless the client says


def show(stored: StoredResponses, name: str, query: Query) -> Json:
    """GET of a response, or of its input items. Raises an ApiError."""
    response_id, _, part = name.partition("/")
    if part == "input_items":
        return _page(stored.items(response_id), query)
    if part:
        raise _nothing(name)
    if query.get("stream", "false") != "false":
        raise BadRequest("a stored response is not streamed: poll it", param="stream")
    return stored.response(response_id)


def cancel(stored: StoredResponses, name: str, _query: Query) -> Json:
    """POST to .../cancel. Raises an ApiError."""
    response_id, _, part = name.partition("/")
    if part != "cancel":
        raise _nothing(name)
    return stored.cancel(response_id)


def delete(stored: StoredResponses, name: str, _query: Query) -> Json:
    """DELETE of a response. Raises NotFound."""
    stored.delete(name)
    return {"id": name, "object": "response", "deleted": True}


def _nothing(name: str) -> NotFound:
    return NotFound(f"there is nothing at /v1/responses/{name[:100]}")


def _page(items: list[Json], query: Query) -> Json:
    """A page of a list. `after` is the id of the last item of the page before."""
    order, limit, after = query.get("order", "desc"), query.get("limit"), query.get("after")
    if order not in ("asc", "desc"):
        raise BadRequest("order is asc or desc", param="order")
    n_most = int(limit) if limit and limit.isascii() and limit.isdigit() and len(limit) < 4 else 0
    if limit is None:
        n_most = PAGE
    if not 1 <= n_most <= MAX_PAGE:
        raise BadRequest(f"limit is from 1 to {MAX_PAGE}", param="limit")
    if order == "desc":
        items = items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise BadRequest(f"there is no item '{after[:64]}'", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:n_most]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
