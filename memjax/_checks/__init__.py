"""Checks of arguments: a wrong value is refused at once, in one line that names the argument, the
value and the fix.

There is one function for each kind of argument. Those whose name begins with `as_` return what
they were given in the form that memjax works with. Traced values cannot be looked at while
tracing: where one is out of range, `as_` functions return NaN in its place, which ends a
measurement as `invalid`, while `check_` functions let it pass.
"""

from ._files import as_existing_file as as_existing_file
from ._files import as_path as as_path
from ._messages import said as said
from ._messages import shown as shown
from ._messages import unknown_name as unknown_name
from ._numbers import as_finite_array as as_finite_array
from ._numbers import as_float_array as as_float_array
from ._numbers import as_horizon as as_horizon
from ._numbers import as_host_array as as_host_array
from ._numbers import as_increasing as as_increasing
from ._numbers import as_inexact_array as as_inexact_array
from ._numbers import as_nonnegative as as_nonnegative
from ._numbers import as_number as as_number
from ._numbers import as_number_array as as_number_array
from ._numbers import as_pair as as_pair
from ._numbers import as_plain as as_plain
from ._numbers import as_positive as as_positive
from ._numbers import as_positive_array as as_positive_array
from ._numbers import as_range as as_range
from ._numbers import as_share as as_share
from ._numbers import as_tolerance as as_tolerance
from ._numbers import check_finite as check_finite
from ._numbers import check_float64 as check_float64
from ._numbers import check_nonnegative as check_nonnegative
from ._numbers import check_positive as check_positive
from ._numbers import check_same_shape as check_same_shape
from ._numbers import check_scalar as check_scalar
from ._numbers import check_scalar_of_model as check_scalar_of_model
from ._objects import as_integers as as_integers
from ._objects import as_key as as_key
from ._objects import as_list as as_list
from ._objects import as_seed as as_seed
from ._objects import check_callable as check_callable
from ._objects import check_choice as check_choice
from ._objects import check_dataset as check_dataset
from ._objects import check_flag as check_flag
from ._objects import check_instance as check_instance
from ._objects import check_integer as check_integer
from ._traced import is_traced as is_traced
from ._traced import valid_or_nan as valid_or_nan
