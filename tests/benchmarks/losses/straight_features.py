"""Formulas of the methods on features and relations in plain torch operations, term by term as one reads them.

Connectors and other trained modules are the method's own; what is compared is all around them. Each takes the
world and the method (`m`) and returns the loss that one step minimises, a scalar.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F

from .straight_logits import ce


def maps(world, when="post", first=1):
    """The stages' maps of student and teacher, in pairs."""
    stages = range(first, len(world.size.maps))
    return [(world.student.map(i, when), world.teacher.map(i, when)) for i in stages]


def fitnet(world, m):
    stages = len(world.size.maps) - 1
    hint = (stages - 1) // 2 + 1
    regressed = m.method.regressor(world.student.map(hint))
    return ce(world) + m.hp.hint_weight * F.mse_loss(regressed, world.teacher.map(hint))


def ab(world, m):
    """Phase init: the boundary loss of RepDistiller's and the authors' code."""
    pairs = maps(world, "pre")
    total = 0.0
    for i, (connect, (s, t)) in enumerate(zip(m.method.connectors, pairs, strict=True)):
        s = connect(s)
        on, off = (t > 0).float(), (t <= 0).float()
        margin = m.hp.margin
        one = ((s - margin) ** 2 * ((s <= margin).float() * on)).sum()
        other = ((s + margin) ** 2 * ((s > -margin).float() * off)).sum()
        total = total + (one + other) / len(s) / 2 ** (len(pairs) - 1 - i)
    # the curve that the method logs: share of neurons on the wrong side
    ((s > 0) != (t > 0)).float().mean()
    return m.hp.loss_weight * total


def ofd(world, m):
    pairs = maps(world, "pre")
    total = 0.0
    for i, (connect, (s, t)) in enumerate(zip(m.method.connectors, pairs, strict=True)):
        s = connect(s)
        t = torch.max(t, m.method.get_buffer(f"margin{i}"))
        distance = (s - t) ** 2 * ((s > t) | (t > 0)).float()
        total = total + distance.sum() / 2 ** (len(pairs) - 1 - i)
    return m.hp.ce_weight * ce(world) + m.hp.alpha * total / len(world.y)


def unit_distance(a, b):
    """Mean L1 distance of flattened unit vectors."""
    return (F.normalize(a.flatten(1), dim=1) - F.normalize(b.flatten(1), dim=1)).abs().mean()


def feed(world, m):
    s = world.student.map(-1)
    total = m.hp.ce_weight * ce(world)
    for transform, teacher in zip(m.method.transforms, world.teachers, strict=True):
        total = total + m.hp.beta * unit_distance(transform(s), teacher.map(-1))
    return total


def ft(world, m):
    with torch.no_grad():
        target = m.method.paraphraser.encoder(world.teacher.map(-1))
    s = m.method.translator(world.student.map(-1))
    return m.hp.ce_weight * ce(world) + m.hp.beta * unit_distance(s, target)


def at(world, m):
    def attention(f):
        return F.normalize(f.pow(2).mean(1).flatten(1), dim=1)

    total = sum((attention(s) - attention(t)).pow(2).mean() for s, t in maps(world))
    return m.hp.ce_weight * ce(world) + m.hp.beta * total


def sp(world, m):
    def similar(f):
        f = f.flatten(1)
        return F.normalize(f @ f.t(), dim=1)

    s, t = world.student.map(-1), world.teacher.map(-1)
    b = len(s)
    return m.hp.ce_weight * ce(world) + m.hp.gamma * (similar(s) - similar(t)).pow(2).sum() / b**2


def embeddings(world, m):
    return m.method.embed_student(world.student.pooled), m.method.embed_teacher(world.teacher.pooled)


def cc(world, m):
    es, et = embeddings(world, m)
    delta = (es - et).abs()
    loss = (delta[:-1] * delta[1:]).sum(1).mean()
    return m.hp.ce_weight * ce(world) + m.hp.weight * loss


def cc_rbf(world, m):
    def kernel(e):
        e = F.normalize(e, dim=1)
        cosine, g = e @ e.t(), m.hp.gamma
        terms = [(2 * g) ** p / math.factorial(p) * cosine.pow(p) for p in range(m.hp.order + 1)]
        return math.exp(-2 * g) * sum(terms)

    es, et = embeddings(world, m)
    loss = (kernel(es) - kernel(et)).pow(2).sum() / len(es) ** 2
    return m.hp.ce_weight * ce(world) + m.hp.weight * loss


def vid(world, m):
    total = 0.0
    for regressor, (s, t) in zip(m.method.regressors, maps(world), strict=True):
        variance = F.softplus(regressor.raw_variance) + regressor.floor
        variance = variance.view(1, -1, 1, 1)
        total = total + (0.5 * ((regressor.mean(s) - t) ** 2 / variance + torch.log(variance))).mean()
    return m.hp.ce_weight * ce(world) + m.hp.weight * total


def rkd(world, m):
    def distances(f):
        square = f.pow(2).sum(1)
        d = (square.unsqueeze(0) + square.unsqueeze(1) - 2 * f @ f.t()).clamp(min=1e-12).sqrt()
        d = d * (1 - torch.eye(len(f), device=f.device))
        return d / d[d > 0].mean()

    def cosines(f):
        sides = F.normalize(f.unsqueeze(0) - f.unsqueeze(1), p=2, dim=2)
        return torch.bmm(sides, sides.transpose(1, 2))

    s, t = world.student.pooled, world.teacher.pooled
    distance = F.smooth_l1_loss(distances(s), distances(t))
    angle = F.smooth_l1_loss(cosines(s), cosines(t))
    hp = m.hp
    return hp.ce_weight * ce(world) + hp.distance_weight * distance + hp.angle_weight * angle


def pkt(world, m):
    def probabilities(f):
        f = F.normalize(f, dim=1)
        similarity = (f @ f.t() + 1) / 2
        return similarity / similarity.sum(1, keepdim=True)

    ps, pt = probabilities(world.student.pooled), probabilities(world.teacher.pooled)
    loss = (pt * torch.log((pt + 1e-7) / (ps + 1e-7))).mean()
    return m.hp.ce_weight * ce(world) + m.hp.weight * loss


def nst(world, m):
    def kernel(a, b):
        return torch.bmm(a, b.transpose(1, 2)).pow(2).mean()

    total = 0.0
    for s, t in maps(world):
        s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
        total = total + kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    return m.hp.ce_weight * ce(world) + m.hp.weight * total


def fsp(world, m):
    """Phase flow: from the stem on."""

    def flow(a, b):
        if a.shape[2] > b.shape[2]:
            a = F.adaptive_avg_pool2d(a, b.shape[2:])
        a, b = a.flatten(2), b.flatten(2)
        return torch.bmm(a, b.transpose(1, 2)) / a.shape[2]

    pairs = maps(world, first=0)
    total = 0.0
    for (s0, t0), (s1, t1) in pairwise(pairs):
        total = total + (flow(s0, s1) - flow(t0, t1)).pow(2).mean()
    return m.hp.weight * total


def crd(world, m):
    """With the negatives given: both contrastive losses as the official code has them, after the first batch."""
    method, hp = m.method, m.hp
    es, et = embeddings(world, m)
    rows = torch.cat([world.index[:, None], method.others(world.index, method.k, world.rng)], 1)
    n, b, k = method.n_data, len(es), method.k
    total = hp.ce_weight * ce(world)
    for side, (bank, e) in enumerate(((method.bank_teacher, es), (method.bank_student, et))):
        chosen = bank.index_select(0, rows.view(-1)).view(b, k + 1, -1)
        scores = torch.exp(torch.bmm(chosen, e.unsqueeze(2)).squeeze(2) / hp.temperature)
        p = scores / method.log_z[side].exp()
        positive = torch.log(p[:, 0] / (p[:, 0] + k / n + 1e-7))
        negative = torch.log((k / n) / (p[:, 1:] + k / n + 1e-7))
        total = total - hp.weight * (positive.sum() + negative.sum()) / b
    return total


def reviewkd(world, m):
    """From the deepest level to the first, each with its distance at four sizes."""

    def levels(s, t):
        total, weights, weight = F.mse_loss(s, t), 1.0, 1.0
        for side in (4, 2, 1):
            if side >= s.shape[2]:
                continue
            weight /= 2
            a, b = F.adaptive_avg_pool2d(s, side), F.adaptive_avg_pool2d(t, side)
            total = total + weight * F.mse_loss(a, b)
            weights += weight
        return total / weights

    last = len(world.size.maps)
    students = [world.student.map(i) for i in range(1, last)] + [world.student.pooled[:, :, None, None]]
    teachers = [world.teacher.map(i, "pre") for i in range(1, last)]
    teachers.append(world.teacher.pooled[:, :, None, None])
    total, deeper = 0.0, None
    for fusion, s, t in zip(reversed(m.method.fusions), students[::-1], teachers[::-1], strict=True):
        x = fusion.reduce(s)
        if deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            w = fusion.attention(torch.cat([x, deeper], 1))
            x = x * w[:, 0:1] + deeper * w[:, 1:2]
        if x.shape[2:] != t.shape[2:]:
            x = F.interpolate(x, t.shape[2:], mode="nearest")
        deeper = x
        total = total + levels(fusion.expand(x), t)
    ramp = m.method.ramp(world.epoch, world.phase_epochs)
    return m.hp.ce_weight * ce(world) + ramp * m.hp.weight * total


def simkd(world, m):
    projected = m.method.projector(world.student.map(-1))
    with torch.no_grad():
        # the curve that the method logs
        answers = m.method.classifier(projected.mean((2, 3))).argmax(1)
        (answers == world.teacher.logits.argmax(1)).float().mean()
    return m.hp.weight * F.mse_loss(projected, world.teacher.map(-1))


def srrl(world, m):
    s = m.method.connector(world.student.map(-1)).mean((2, 3))
    matching = F.mse_loss(s, world.teacher.pooled)
    regression = F.mse_loss(m.method.classifier(s), world.teacher.logits)
    return m.hp.ce_weight * ce(world) + m.hp.alpha * matching + m.hp.beta * regression


def ofa(world, m):
    hp, zt = m.hp, world.teacher.logits
    hit = F.one_hot(world.y, zt.shape[1]).float()

    def loss(zs):
        p_t, log_s = F.softmax(zt / hp.temperature, 1), F.log_softmax(zs / hp.temperature, 1)
        return -(((p_t + hit) ** hp.eps - hit) * log_s).sum(1).mean()

    exits = sum(
        loss(h(world.student.map(int(t.at))))
        for h, t in zip(m.method.heads, m.method.stage_taps, strict=True)
    )
    return hp.ce_weight * ce(world) + hp.weight * exits + hp.kd_weight * loss(world.student.logits)
