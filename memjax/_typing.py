"""What memjax takes for arrays and numbers, as type checkers see it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import jax

# A number, or an array of one.
ScalarLike: TypeAlias = jax.typing.ArrayLike

if TYPE_CHECKING:
    # `_checks` makes arrays of lists of numbers, and of lists of lists.
    ArrayLike: TypeAlias = jax.typing.ArrayLike | Sequence["ArrayLike"]
else:
    # At run time jaxtyping looks at shapes and dtypes, and these only arrays have.
    ArrayLike: TypeAlias = jax.typing.ArrayLike
