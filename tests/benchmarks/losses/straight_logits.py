"""Formulas of the logit methods in plain torch operations, term by term as one reads them.

Each takes the world and the method (`m`) and returns the loss that one step minimises, a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def ce(world):
    return F.cross_entropy(world.student.logits, world.y)


def kl(zs, zt, temperature):
    """T² KL(teacher ‖ student), batch mean."""
    log_s = F.log_softmax(zs / temperature, 1)
    p_t = F.softmax(zt / temperature, 1)
    return temperature**2 * F.kl_div(log_s, p_t, reduction="batchmean")


def soft_ce(zs, zt, temperature):
    """Cross-entropy of the softened distributions, (B,)."""
    return -(F.softmax(zt / temperature, 1) * F.log_softmax(zs / temperature, 1)).sum(1)


def both(world):
    return world.student.logits, world.teacher.logits


def scaled(z):
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)


def vanilla(world, m):
    return ce(world)


def kd(world, m):
    return m.hp.ce_weight * ce(world) + m.hp.alpha * kl(*both(world), m.hp.temperature)


def kd_ls(world, m):
    zs, zt = both(world)
    return m.hp.ce_weight * ce(world) + m.hp.alpha * kl(scaled(zs), scaled(zt), m.hp.temperature)


def rco(world, m):
    return m.hp.ce_weight * ce(world) + m.hp.kd_weight * kl(*both(world), m.hp.temperature)


def dkd(world, m):
    hp, (zs, zt), y = m.hp, both(world), world.y
    hit = F.one_hot(y, zs.shape[1]).float()

    def binary(z):
        p = F.softmax(z / hp.temperature, 1)
        return torch.stack([(p * hit).sum(1), (p * (1 - hit)).sum(1)], 1)

    def others(z):
        return z / hp.temperature - 1000 * hit

    target = F.kl_div(binary(zs).log(), binary(zt), reduction="batchmean")
    rest = F.kl_div(F.log_softmax(others(zs), 1), F.softmax(others(zt), 1), reduction="batchmean")
    return hp.ce_weight * ce(world) + hp.temperature**2 * (hp.alpha * target + hp.beta * rest)


def dist(world, m):
    hp, (zs, zt) = m.hp, both(world)
    ps, pt = F.softmax(zs / hp.temperature, 1), F.softmax(zt / hp.temperature, 1)

    def relation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    relations = hp.beta * relation(ps, pt) + hp.gamma * relation(ps.t(), pt.t())
    return hp.ce_weight * ce(world) + hp.kd_weight * hp.temperature**2 * relations


def mlkd(world, m):
    """What the official code computes, when the weak and the strong view give the same logits."""
    hp, (zs, zt) = m.hp, both(world)
    surest, likeliest = F.softmax(zt, 1).max(1)[0], F.softmax(zt, 1).sum(0)
    samples = (surest <= surest.quantile(0.5)).float().mean()
    classes = (likeliest <= likeliest.quantile(0.5)).float().mean()
    total = 2 * hp.ce_weight * ce(world)
    for t in (2.0, 3.0, 5.0, 6.0, hp.temperature):
        weak, strong = kl(zs, zt, t), kl(zs, zt, t)
        ps, pt = F.softmax(zs / t, 1), F.softmax(zt / t, 1)
        between_samples = (ps @ ps.t() - pt @ pt.t()).pow(2).sum() / len(zs)
        ps, pt = F.softmax(zs / t, 1), F.softmax(zt / t, 1)
        between_classes = (ps.t() @ ps - pt.t() @ pt).pow(2).sum() / zs.shape[1]
        aligned = samples * (weak + between_samples) + strong + classes * between_classes
        total = total + hp.kd_weight * aligned
    return total


def wsld(world, m):
    hp, (zs, zt), y = m.hp, both(world), world.y
    with torch.no_grad():
        ratio = F.cross_entropy(zs, y, reduction="none") / (F.cross_entropy(zt, y, reduction="none") + 1e-7)
        weight = 1 - torch.exp(-ratio)
    soft = (weight * soft_ce(zs, zt, hp.temperature)).mean()
    return hp.ce_weight * ce(world) + hp.alpha * hp.temperature**2 * soft


def ctkd(world, m):
    hp = m.hp
    # the reversed gradient changes the backward pass by one product; here the reversal is complete
    theta = m.method.theta
    theta = theta.detach() - (theta - theta.detach())
    temperature = hp.t_start + hp.t_range * torch.sigmoid(theta)
    return hp.ce_weight * ce(world) + hp.alpha * kl(*both(world), temperature).squeeze()


def takd(world, m):
    guide = world.others["assistant"].logits.detach()
    hp = m.hp
    soft = kl(world.student.logits, guide, hp.temperature)
    return (1 - hp.kd_weight) * ce(world) + hp.kd_weight * soft


def dml(world, m):
    """Both networks' losses; each is the target of the other."""
    zs, peer = world.student.logits, world.others["peer1"].logits
    t, w = m.hp.temperature, m.hp.kl_weight
    first = ce(world) + w * kl(zs, peer.detach(), t)
    return first + F.cross_entropy(peer, world.y) + w * kl(peer, zs.detach(), t)


def tfkd(world, m):
    hp, target = m.hp, world.others["self_teacher"].logits.detach()
    factor = 1.0 if hp.multiplier is None else hp.multiplier / world.size.classes
    soft = kl(world.student.logits, target, hp.temperature)
    return (1 - hp.alpha) * ce(world) + hp.alpha * factor * soft


def tfkd_reg(world, m):
    hp, zs, classes = m.hp, world.student.logits, world.size.classes
    hit = F.one_hot(world.y, classes).float()
    u = hp.correct_prob * hit + (1 - hp.correct_prob) / (classes - 1) * (1 - hit)
    virtual = F.softmax(u / hp.reg_temperature, 1)
    soft = F.kl_div(F.log_softmax(zs, 1), virtual, reduction="batchmean")
    factor = 1.0 if hp.reg_multiplier is None else hp.reg_multiplier / classes
    return (1 - hp.reg_alpha) * ce(world) + hp.reg_alpha * factor * soft


def timm_logit(world, m):
    return ce(world) + kl(*both(world), m.hp.temperature)


def timm_feature(world, m):
    return ce(world) + F.mse_loss(world.student.pooled, world.teacher.pooled)


def timm_token(world, m):
    return ce(world) + kl(world.student.token_logits, world.teacher.logits, m.hp.temperature)


def dfad(world, m):
    """The student's side of one round; networks and generator aside, this is the loss."""
    zs, zt = both(world)
    return (zs - zt).abs().mean()


def ffl(world, m):
    """With the fusion module, which is trained along."""
    peer, hp = world.others["peer"], m.hp
    maps = torch.cat([world.student.map(-1), peer.map(-1)], 1)
    fused = m.method.fusion(maps)
    z1, z2 = world.student.logits, peer.logits
    mean = ((z1 + z2) / 2).detach()
    t = hp.temperature
    mutual = kl(fused, mean, t) + kl(z1, fused.detach(), t) + kl(z2, fused.detach(), t)
    tasks = ce(world) + F.cross_entropy(z2, world.y) + F.cross_entropy(fused, world.y)
    return tasks + m.method.ramp(world.epoch, world.phase_epochs) * mutual


def bss(world, m):
    """The two terms of a step whose moved images give the same logits and all count; without the attack."""
    zs, zt = both(world)
    alpha, beta = m.method.weights(world.epoch, world.phase_epochs)
    clean = soft_ce(zs, zt, m.hp.temperature).mean()
    moved = soft_ce(zs, zt, m.hp.temperature).mean()
    return m.hp.ce_weight * ce(world) + alpha * clean + beta * moved
