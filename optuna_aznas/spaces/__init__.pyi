from optuna_aznas.spaces import autoformer as autoformer
from optuna_aznas.spaces import mobilenet_v2 as mobilenet_v2
from optuna_aznas.spaces import nas_bench_201 as nas_bench_201
from optuna_aznas.spaces.built_in import BUILT_IN as BUILT_IN
from optuna_aznas.spaces.built_in import BuiltIn as BuiltIn
