"""Flower's SecAgg+: python flower_secagg.py VALUES NEIGHBOURS THRESHOLD CLIENTS DROPOUTS; figures as JSON.

What `flwr.client.mod.secure_aggregation.secaggplus_mod` does in its stage of masking and
`flwr.server.workflow.secure_aggregation.secaggplus_workflow` in its stage of unmasking, with the same functions in
the same order and their default ranges, without messages between them.
"""

import json
import os
import sys
import time

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

MODULUS, QUANTA, CLIP, WEIGHT = 1 << 32, 1 << 22, 8.0, 1000


def pair():
    """Return a private and a public key as bytes."""
    private, public = generate_key_pairs()
    return private_key_to_bytes(private), public_key_to_bytes(public)


def masked(parameters, seed, private, publics):
    """Return quantised parameters with all masks, and the CPU seconds without and with quantising."""
    began = time.process_time()
    vectors = factor_combine(WEIGHT, quantize(parameters, CLIP, QUANTA))
    quantised = time.process_time()
    shapes = [vector.shape for vector in vectors]
    vectors = parameters_addition(vectors, pseudo_rand_gen(seed, MODULUS, shapes))
    for place, public in enumerate(publics):
        key = generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))
        apply = parameters_addition if place % 2 else parameters_subtraction
        vectors = apply(vectors, pseudo_rand_gen(key, MODULUS, shapes))
    vectors = parameters_mod(vectors, MODULUS)
    ended = time.process_time()
    return vectors, ended - quantised, ended - began


def main():
    """Measure masking on a client and unmasking on the server."""
    values, neighbours, threshold, clients, dropouts = map(int, sys.argv[1:])
    parameters = [np.random.default_rng(0).normal(0, 0.1, values)]
    private, _ = pair()
    publics = [pair()[1] for _ in range(neighbours)]
    runs = [masked(parameters, os.urandom(32), private, publics) for _ in range(5)]
    vectors = runs[0][0]
    seeds = [create_shares(os.urandom(32), threshold, neighbours)[:threshold] for _ in range(clients - dropouts)]
    keys = [create_shares(private, threshold, neighbours)[:threshold] for _ in range(dropouts)]
    total = vectors
    began, wall = time.process_time(), time.perf_counter()
    for shares in seeds:
        mask = pseudo_rand_gen(combine_shares(shares), MODULUS, get_parameters_shape(total))
        total = parameters_subtraction(total, mask)
    for shares in keys:
        secret = combine_shares(shares)
        for place, public in enumerate(publics):
            key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public))
            apply = parameters_addition if place % 2 else parameters_subtraction
            total = apply(total, pseudo_rand_gen(key, MODULUS, get_parameters_shape(total)))
    parameters_mod(total, MODULUS)
    print(
        json.dumps(
            {
                "mask_cpu_seconds": sorted(run[1] for run in runs)[2],
                "mask_and_quantise_cpu_seconds": sorted(run[2] for run in runs)[2],
                "bytes": sum(vector.nbytes for vector in vectors),
                "unmask_cpu_seconds": time.process_time() - began,
                "unmask_seconds": time.perf_counter() - wall,
            }
        )
    )


if __name__ == "__main__":
    main()
