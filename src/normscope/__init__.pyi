"""The public names for editors and type checkers; a test holds them to the table in `__init__.py`."""

from normscope import claims as claims
from normscope import functional as functional
from normscope import kernels as kernels
from normscope import nn as nn
from normscope import stats as stats
from normscope.anatomy.batch import Probe as Probe
from normscope.anatomy.recognize import spec_of as spec_of
from normscope.anatomy.walk import sites as sites
from normscope.diagnose.engine import diagnose as diagnose
from normscope.diagnose.engine import lint as lint
from normscope.record.reader import Record as Record
from normscope.terms.catalog import CATALOG as catalog  # noqa: F401 (a name of the face)
from normscope.terms.errors import NormscopeError as NormscopeError
from normscope.terms.finding import Diagnosis as Diagnosis
from normscope.terms.finding import Evidence as Evidence
from normscope.terms.finding import Finding as Finding
from normscope.terms.finding import Prescription as Prescription
from normscope.terms.site import Site as Site
from normscope.terms.spec import NormSpec as NormSpec
from normscope.terms.verdict import Trial as Trial
from normscope.terms.verdict import Verdict as Verdict
from normscope.treat.banks import domain_banks as domain_banks
from normscope.treat.density import density_weights as density_weights
from normscope.treat.density import effective_sample_size as effective_sample_size
from normscope.treat.density import weighted_sampler as weighted_sampler
from normscope.treat.parameter_groups import parameter_groups as parameter_groups
from normscope.treat.stream import norm_for_stream as norm_for_stream
from normscope.treat.treatment import Treated as Treated
from normscope.treat.treatments.adapt import adapt as adapt
from normscope.treat.treatments.convert import convert as convert
from normscope.treat.treatments.fold import fold as fold
from normscope.treat.treatments.freeze import freeze as freeze
from normscope.treat.treatments.freeze import unfreeze as unfreeze
from normscope.treat.treatments.fuse import fuse as fuse
from normscope.treat.treatments.recalibrate import recalibrate as recalibrate
from normscope.treat.trial import trial as trial
from normscope.verbs import report as report
from normscope.verbs import treat as treat
from normscope.watch.session import Watcher as Watcher
from normscope.watch.session import watch as watch

__version__: str
__all__: list[str]
