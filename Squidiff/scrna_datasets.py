"""Upstream's drug encoder under its own name, with its own arguments."""

from collections.abc import Sequence

import numpy as np

from squidiff.legacy.cells import encode_drugs


def Drug_dose_encoder(
    drug_SMILES_list: Sequence[str], dose_list: Sequence[float], num_Bits: int = 1024, comb_num: int = 1
) -> np.ndarray:
    """Encodings, N x num_Bits. Drugs joined by '+' are told apart whatever comb_num says."""
    return encode_drugs(drug_SMILES_list, dose_list, num_Bits)
