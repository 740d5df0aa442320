"""Evaluation as users run it: a run, a file, two of them, and what is refused."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from tests.runs import ROOT, finish
from xmae_jax import config as config_lib
from xmae_jax import main
from xmae_jax.data import records, views
from xmae_jax.evaluators.classification import Classification
from xmae_jax.tasks import evaluate
from xmae_jax.tasks.model import load_run

FINDINGS = "('Nodule','Pneumothorax','Pleural Effusion')"
