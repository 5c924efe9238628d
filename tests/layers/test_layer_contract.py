"""Every layer through every contract. A new layer is a row in layer_cases.py, nothing here."""

import keras
import pytest
from layer_cases import CASES

from keras_trainkit import layers
from keras_trainkit.testing import layer_contracts

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_public_layer_has_a_row():
    public = {getattr(layers, name) for name in layers.__all__}
    wanted = {kind for kind in public if isinstance(kind, type) and issubclass(kind, keras.layers.Layer)}
    assert {type(case.make()) for case in CASES} == wanted


@every_case
def test_configuration_survives(case):
    layer_contracts.keeps_configuration(case)


@every_case
def test_all_state_is_saved(case, tmp_path):
    layer_contracts.survives_saving(case, tmp_path)


@every_case
def test_shapes_are_known(case):
    layer_contracts.knows_its_shape(case)


@every_case
def test_dtypes_are_kept(case):
    layer_contracts.keeps_dtypes(case)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shape) > 1], ids=lambda case: case.name)
def test_masks_pass(case):
    layer_contracts.passes_masks(case)


@every_case
def test_it_trains_when_told(case):
    layer_contracts.trains_when_told(case)


@every_case
def test_gradients_are_finite(case):
    layer_contracts.has_finite_gradients(case)


@every_case
def test_it_compiles(case):
    layer_contracts.compiles(case)


@pytest.mark.tensorflow
def test_they_run_on_replicas(two_replicas):
    layer_contracts.run_on_replicas(CASES, two_replicas)
