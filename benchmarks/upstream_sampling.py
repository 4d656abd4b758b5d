"""Times upstream's sampler (PyPI's Squidiff 1.0.8, in an environment of its own) beside ours: one model, one noise.

    python3 -m venv upstream
    upstream/bin/pip install torch==2.13.0 Squidiff==1.0.8 scanpy rdkit matplotlib scikit-learn
    python benchmarks/upstream_sampling.py upstream/bin/python [--model model.pt] [--cells data.h5ad] [--n-cells 256]

Without --model an untrained one of upstream's default size is made, which is as good for times; the differences mean
something for a trained model only. With --cells, the latents are those of its first cells, else standard normal.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist

from squidiff.diffusion.schedule import StepSchedule
from squidiff.estimator.upstream import Decoder
from squidiff.legacy.cells import dense
from squidiff.legacy.sample import N_STEPS
from squidiff.model.upstream import UpstreamNetwork, UpstreamSizes
from squidiff.train.upstream_checkpoint import read_upstream, write_upstream

UPSTREAM = """
import sys, time
import numpy as np, torch
from Squidiff.script_util import create_model_and_diffusion, model_and_diffusion_defaults
model_path, data_path, out_path = sys.argv[1:]
data = np.load(data_path)
n_genes = data["x_T"].shape[1]
sizes = dict(gene_size=n_genes, output_dim=n_genes, use_encoder=True, num_layers=int(data["n_blocks"]))
model, diffusion = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **sizes})
model.load_state_dict(torch.load(model_path, weights_only=True))
model.eval()
x_T, z_sem = torch.from_numpy(data["x_T"]), torch.from_numpy(data["z_sem"])
with torch.no_grad():
    model(x_T, torch.zeros(len(x_T)), z_mod=z_sem)  # warm
started = time.perf_counter()
sample = diffusion.ddim_sample_loop(model, x_T.shape, noise=x_T, model_kwargs={"z_mod": z_sem})
np.savez(out_path, seconds=time.perf_counter() - started, sample=sample.numpy())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="the Python that has Squidiff 1.0.8")
    parser.add_argument("--model", type=Path, help="a checkpoint of the autoencoder variant, of width 2,048")
    parser.add_argument("--cells", type=Path, help="an .h5ad file of the cells to encode")
    parser.add_argument("--n-cells", type=int, default=256)
    parser.add_argument("--n-genes", type=int, default=100, help="of the untrained model")
    parser.add_argument("--repeats", type=int, default=3, help="of our 20 steps; the best counts")
    args = parser.parse_args()
    sizes = UpstreamSizes(args.n_genes, 0, 60, 2048, 2048, 3, 2048)
    network = read_upstream(args.model) if args.model else UpstreamNetwork.initialise(sizes, 0).eval()
    schedule = StepSchedule.named("linear", N_STEPS)
    generator = torch.Generator().manual_seed(0)
    z_sem = torch.randn(args.n_cells, network.sizes.n_latent, generator=generator)
    if args.cells:
        with torch.no_grad():
            z_sem = network.encoder(torch.from_numpy(dense(ad.read_h5ad(args.cells)[: args.n_cells].copy())))
    x_t = torch.randn(len(z_sem), network.sizes.n_genes, generator=generator)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_upstream(folder / "model.pt", network.state_dict())
        given = {"x_T": x_t.numpy(), "z_sem": z_sem.numpy(), "n_blocks": network.sizes.n_blocks}
        np.savez(folder / "given.npz", **given)
        files = [folder / "model.pt", folder / "given.npz", folder / "theirs.npz"]
        subprocess.run(
            [args.python.absolute(), "-c", UPSTREAM, *files], check=True, stdout=subprocess.DEVNULL, cwd=folder
        )
        theirs = dict(np.load(folder / "theirs.npz"))
    reference, seconds = theirs["sample"], float(theirs["seconds"])
    print(f"{len(z_sem)} cells of {network.sizes.n_genes} genes, torch {torch.__version__}")
    print(f"Squidiff 1.0.8, 1,000 steps of DDIM: {seconds:.1f} s")
    Decoder(network, schedule, 5, "ddim")(z_sem[:8], x_t[:8])  # warm
    for method, n, repeats in (("ddim", 1000, 1), ("dpmpp_2m", 20, args.repeats), ("ddim", 20, args.repeats)):
        took = []
        for _ in range(repeats):
            started = time.perf_counter()
            found = Decoder(network, schedule, n, method)(z_sem, x_t).numpy()
            took.append(time.perf_counter() - started)
        times = f"{min(took):.2f} s, {seconds / min(took):.2f} times faster"
        print(f"ours, {n} steps of {method}: {times}; {told(found, reference)}")


def told(found: np.ndarray, reference: np.ndarray) -> str:
    """How far samples are from upstream's, in words. The energy distance is over all genes, 0 for equal samples."""
    largest = np.abs(found - reference).max() / np.abs(reference).max()
    moved = [
        np.abs(f(found, axis=0) - f(reference, axis=0)).mean() / f(reference, axis=0).mean() for f in (np.mean, np.var)
    ]
    distance = 2 * cdist(found, reference).mean() - cdist(found, found).mean() - cdist(reference, reference).mean()
    return (
        f"largest difference {largest:.1e} of the largest value; means differ by {moved[0]:.2%}, variances by "
        f"{moved[1]:.2%} of their averages; energy distance {distance:.3f} where cells of the reference lie "
        f"{pdist(reference).mean():.1f} apart"
    )


if __name__ == "__main__":
    main()
