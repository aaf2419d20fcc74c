"""The faults, by what they spoil."""

from planted.ends import FAULTS as ENDS
from planted.inputs import FAULTS as INPUTS
from planted.norms import FAULTS as NORMS
from planted.second import FAULTS as SECOND
from planted.starts import FAULTS as STARTS
from planted.steps import FAULTS as STEPS
from planted.third import FAULTS as THIRD

FAULTS = (*STARTS, *STEPS, *INPUTS, *ENDS, *NORMS, *SECOND, *THIRD)
