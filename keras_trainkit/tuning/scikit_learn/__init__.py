"""Keras models for scikit-learn: estimators, and its searches over ours."""
