"""Compiled k-means and Ward's clustering of one text's token vectors; see chamfer.models.networks.token_pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.compilation import compiled


@compiled()
def lloyd(products: Any, weights: Any, k: int, iterations: int) -> Any:
    """Labels i64 [L] from inner products f64 [L, L] and weights f64 [L]: greedy centres, then Lloyd's iterations."""
    labels, count = _choose_centres(products, weights, k)
    sums = np.empty((count, len(products)), np.float64)
    sizes = np.empty(count, np.float64)
    norms = np.empty(count, np.float64)
    for _ in range(iterations):
        _measure(products, weights, labels, sums, sizes, norms)
        if not _move(labels, sums, sizes, norms):
            break
    return labels


@compiled()
def _choose_centres(products: Any, weights: Any, k: int) -> Any:
    """(the nearest centre of every token i64 [L], their number <= k); a centre is a token."""
    n = len(products)
    nearest = np.full(n, np.inf)
    labels = np.zeros(n, np.int64)
    count = 0
    while count < k:
        best, lowest = 0, np.inf
        for candidate in range(n):
            total = 0.0
            for i in range(n):
                distance = products[i, i] + products[candidate, candidate] - 2 * products[candidate, i]
                total += weights[i] * min(distance, nearest[i])
            # Either token of an isolated pair lowers the sum equally: take the one farther from the other centres.
            tie = abs(total - lowest) <= 1e-9
            if total < lowest - 1e-9 or (tie and nearest[candidate] > nearest[best]):
                best, lowest = candidate, total
        if count > 0 and (weights * nearest).sum() - lowest <= 1e-9:  # every token is at a centre
            break
        for i in range(n):
            distance = products[i, i] + products[best, best] - 2 * products[best, i]
            if distance < nearest[i]:
                nearest[i] = distance
                labels[i] = count
        count += 1
    return labels, count


@compiled()
def _measure(products: Any, weights: Any, labels: Any, sums: Any, sizes: Any, norms: Any) -> None:
    """Of each cluster: inner products of its weighted sum with every token, its weight, its sum's squared length."""
    sums[:] = 0.0
    sizes[:] = 0.0
    norms[:] = 0.0
    for j in range(len(products)):
        sizes[labels[j]] += weights[j]
        for i in range(len(products)):
            sums[labels[j], i] += weights[j] * products[j, i]
    for j in range(len(products)):
        norms[labels[j]] += weights[j] * sums[labels[j], j]


@compiled()
def _move(labels: Any, sums: Any, sizes: Any, norms: Any) -> bool:
    """Moves every token to the nearest mean, ties to its own cluster. Returns whether any moved."""
    changed = False
    for i in range(len(labels)):
        nearest = labels[i]
        least = norms[nearest] / sizes[nearest] ** 2 - 2 * sums[nearest, i] / sizes[nearest]
        for c in range(len(sizes)):
            if sizes[c] > 0:
                distance = norms[c] / sizes[c] ** 2 - 2 * sums[c, i] / sizes[c]
                if distance < least - 1e-12:
                    nearest, least = c, distance
        if nearest != labels[i]:
            labels[i] = nearest
            changed = True
    return changed


@compiled()
def ward(products: Any, weights: Any, k: int) -> Any:
    """Labels i64 [L] of k clusters: the two whose union adds least variance are merged until k are left.

    Equal tokens are merged even if fewer than k clusters remain. products f64 [L, L] are inner products, overwritten by
    those of the clusters' weighted sums; weights f64 [L] > 0. Ties go to the smaller numbers.
    """
    n = len(products)
    labels = np.arange(n)
    sizes = weights.copy()
    for i in range(n):
        products[i] *= weights[i]
        products[:, i] *= weights[i]
    partner = np.zeros(n, np.int64)  # the cheapest later cluster to merge with, and its cost
    cost = np.full(n, np.inf)
    for a in range(n):
        partner[a], cost[a] = _cheapest(products, sizes, a)
    for left in range(n, 1, -1):
        cheapest = np.argmin(cost)
        if left <= k and cost[cheapest] > 1e-9:
            break
        a, b = int(cheapest), int(partner[cheapest])
        products[a] += products[b]
        products[:, a] += products[:, b]
        sizes[a] += sizes[b]
        sizes[b], cost[b] = 0.0, np.inf
        labels[labels == b] = a
        for c in range(n):
            if sizes[c] > 0 and (c == a or partner[c] == a or partner[c] == b):
                partner[c], cost[c] = _cheapest(products, sizes, c)
            elif sizes[c] > 0 and c < a:
                joined = _rise(products, sizes, c, a)
                if joined < cost[c]:
                    partner[c], cost[c] = a, joined
    return labels


@compiled()
def _cheapest(products: Any, sizes: Any, a: int) -> Any:
    best, least = a, np.inf
    for b in range(a + 1, len(sizes)):
        if sizes[b] > 0:
            rise = _rise(products, sizes, a, b)
            if rise < least:
                best, least = b, rise
    return best, least


@compiled()
def _rise(products: Any, sizes: Any, a: int, b: int) -> float:
    """By how much the sum of squared distances to the means rises when clusters a and b are merged."""
    distance = products[a, a] / sizes[a] ** 2 + products[b, b] / sizes[b] ** 2
    distance -= 2 * products[a, b] / (sizes[a] * sizes[b])
    return float(distance * sizes[a] * sizes[b] / (sizes[a] + sizes[b]))
