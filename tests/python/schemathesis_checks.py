"""A check of our own: why a request that fits its schema was refused with 400 or 422.

Each reason is about what no schema can say: two fields, or two headers, that have to agree; values that
only an earlier answer gives. Any other reason is a schema that promises too much.
"""

import re

import schemathesis

REASONS = [
    "commandId and Idempotency-Key say the same",
    "If-Match and expectedVersion name two versions",
    "atVersion and atTime exclude each other",
    "a command is of one stream, name one",
    "/orderId must be the order of the path",
    "/paymentId must be that of the path",
    "was decided with another payload",
    "Consistency-Token holds what no write has answered",
    "cursor: must be the nextCursor of a page",
    # The currency says how many; and 1.0 is an integer to JSON Schema, but neither a quantity nor a version.
    r"/amount must have at most \d decimals",
    r"/(expectedVersion|items/\d+/quantity) must be an integer",
    # Schemathesis's own: it takes the quotes off an ETag, and follows a pending command's `orderId: null`.
    "If-Match must be one ETag",
    "Cannot parse `orderId` with value `null`",
]
REASONS = re.compile("|".join(REASONS))


@schemathesis.check
def refused_for_what_no_schema_says(ctx, response, case):
    if response.status_code not in (400, 422) or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # Schemathesis's own: it follows the `orderId: null` of a pending command into a path.
    if any(value in (None, "null") for value in (case.path_parameters or {}).values()):
        return
    detail = response.json().get("detail", "")
    assert REASONS.search(detail), f"The schema lets this pass, the API refuses it: {detail}"
