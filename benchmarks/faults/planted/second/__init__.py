"""The second held-out set: written by somebody who knew the names of the rules and nothing else of them, and first
diagnosed when the rules were frozen.
"""

from planted.second.ends import FAULTS as ENDS
from planted.second.inputs import FAULTS as INPUTS
from planted.second.norms import FAULTS as NORMS
from planted.second.starts import FAULTS as STARTS
from planted.second.steps import FAULTS as STEPS
from planted.second.wiring import FAULTS as WIRING

FAULTS = (*STARTS, *STEPS, *INPUTS, *ENDS, *NORMS, *WIRING)
