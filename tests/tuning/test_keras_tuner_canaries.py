"""What the searches take of KerasTuner that it does not promise: a test each, to say by name what has gone."""

import inspect

import keras_tuner
import pytest

ORACLE = ["_check_consecutive_failures", "_check_objective_found", "_compute_values_hash", "_get_oracle_fname",
          "_get_trial_dir", "_project_dir", "_record_values", "_save_trial"]  # fmt: skip
TUNER = ["_activate_all_conditions", "_build_and_fit_model", "_build_hypermodel", "_deepcopy_callbacks",
         "_get_build_config_fname", "_get_checkpoint_fname", "_get_tuner_fname", "_populate_initial_space",
         "_run_and_update_trial", "_try_build", "_try_run_and_update_trial"]  # fmt: skip


@pytest.mark.parametrize("name", ORACLE)
def test_a_name_of_the_oracle(name):
    assert hasattr(keras_tuner.Oracle, name)


@pytest.mark.parametrize("name", TUNER)
def test_a_name_of_the_tuner(name):
    assert hasattr(keras_tuner.Tuner, name)


def test_the_queue_of_retries_is_taken_from_its_end():
    assert "self._retry_queue.pop()" in inspect.getsource(keras_tuner.Oracle)
    assert isinstance(keras_tuner.oracles.RandomSearchOracle("val_loss", 1)._retry_queue, list)


def test_tries_are_counted_and_new_entries_merged():
    source = inspect.getsource(keras_tuner.Oracle)
    assert "self._run_times[trial.trial_id] += 1" in source
    assert hasattr(keras_tuner.HyperParameters, "_exists") and hasattr(keras_tuner.HyperParameters, "merge")


def test_fit_goes_through_the_copied_callbacks_and_the_build():
    source = inspect.getsource(keras_tuner.Tuner.run_trial)
    assert "self._deepcopy_callbacks(" in source and "self._build_and_fit_model(" in source
