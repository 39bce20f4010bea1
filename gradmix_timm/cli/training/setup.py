"""Set up a training run: device, model, mixer, task, optimizer, schedule."""
from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from timm import utils
from timm.data import resolve_input_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.models import parse_model_name, resolve_model_input_args, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask
from timm.task.distillation import FeatureDistillationTrainableModule
from timm.utils import NativeScaler
from torch import nn

from gradmix_timm.attribution import borrow, unwrap
from gradmix_timm.cli.errors import shortened
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.mixers import GradMix
from gradmix_timm.models import check_name

from .augmentation import chosen_pipelines
from .context import Built, Hardware
from .flag_checks import create_loss
from .mixing import MixPlan, create_step_mixer
from .objectives import build_objective_task
from .run_state import RECORDED_TASKS

__all__ = [
    'build_mixer', 'build_model', 'build_optimizer', 'build_schedule', 'build_task',
    'compile_task', 'live_model', 'start', 'trainable']

_logger = logging.getLogger('train')

# Arguments of create_model that shape training alone; a checkpoint does not need them to be read.
_TRAINING_ONLY = ('drop_rate', 'drop_path_rate', 'drop_block_rate', 'scriptable')


def start(args: argparse.Namespace) -> Hardware:
    """Device, process group, precision and seeds; completes ``args`` as timm's script does.

    Raises:
        ValueError: No such device here; what to type is in the message.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif args.device.startswith('cuda'):
        raise ValueError(f'--device {args.device}: PyTorch {torch.__version__} sees no CUDA device here; type '
                         '--device cpu')
    args.prefetcher = not args.no_prefetcher
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    device = utils.init_distributed_device(args)
    _logger.info(f'Process {args.rank} of {args.world_size} on {args.device}.')
    hardware = _precision(args, device)
    utils.random_seed(args.seed, args.rank)
    if args.fuser:
        utils.set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()
    return hardware


def _precision(args: argparse.Namespace, device: torch.device) -> Hardware:
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    if dtype is torch.float16:
        _logger.warning('A float16 model seldom trains well; --model-dtype bfloat16 does.')
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    scaler = None
    if args.amp:
        amp_dtype = getattr(torch, args.amp_dtype)
        autocast = partial(torch.autocast, device_type=device.type, dtype=amp_dtype)
        if device.type == 'cuda' and amp_dtype is torch.float16:
            scaler = NativeScaler(device=device.type)
    if utils.is_primary(args):
        _logger.info(f'Training in {f"mixed precision, {args.amp_dtype}" if args.amp else dtype or torch.float32}.')
    return Hardware(device, dtype, autocast, scaler)


def build_model(args: argparse.Namespace, hardware: Hardware, create_model: Callable[..., nn.Module]) -> Built:
    """The model on its device, with the changes of the flags; sets ``args.num_classes`` if it is unset.

    Args:
        args: Checked flags.
        hardware: Where it goes.
        create_model: timm's, or a replacement.

    Raises:
        ValueError: The model cannot be made with these flags.
    """
    resolved = _model_arguments(args)
    model = _create(args, resolved, create_model)
    with torch.no_grad():
        _start_head(args, model)
    if args.num_classes is None:
        if not hasattr(model, 'num_classes'):
            raise ValueError(f'{args.model} does not declare its number of classes; type --num-classes N')
        args.num_classes = model.num_classes
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    primary = utils.is_primary(args)
    if primary:
        count = sum(p.numel() for p in model.parameters())
        _logger.info(f'Model {safe_model_name(args.model)} created, param count:{count}')
    preprocessing = _preprocessing(args, model)
    patch_size = model.get_patch_size() if args.naflex_loader and hasattr(model, 'get_patch_size') else None
    kwargs = {name: value for name, value in resolved.items()
              if name not in ('model_name', 'pretrained_cfg', *_TRAINING_ONLY) and not name.startswith('pretrained')}
    name = args.model if parse_model_name(args.model)[0] is None else resolved['model_name']
    model = _placed(args, hardware, model)
    if not args.torchscript:
        _check_input(args, model, preprocessing.input_size, hardware, patch_size)
    return Built(model, name, {**kwargs, 'num_classes': args.num_classes + args.unknown_output}, preprocessing,
                 patch_size)


def _preprocessing(args: argparse.Namespace, model: nn.Module) -> Preprocessing:
    """How validation images are read, which the checkpoint records for every later evaluation.

    timm's script does not pass the model's crop mode to validation, which always crops the center. A run without an
    open-set split validates, and so picks ``model_best``, as that script does with any mixer, and its checkpoint
    records that. An open-set run has no counterpart in timm's script and uses the model's own crop mode.
    """
    primary = utils.is_primary(args)
    config = resolve_input_data_config(model, vars(args), verbose=primary)
    if not (args.osr_protocol or args.known_classes) and config['crop_mode'] != 'center':
        if primary:
            _logger.info(f"Validation images are cut out in the center, as timm's script does, though the model's crop "
                         f'mode is {config["crop_mode"]}; the checkpoint records it. An open-set run (--known-classes) '
                         "takes the model's.")
        config['crop_mode'] = 'center'
    pipeline, found = None, chosen_pipelines(args)
    if found is not None and found.eval is not None:
        pipeline = {'path': found.path, 'transform': found.eval}
        if primary:
            _logger.info(f'Validation images, and those of later evaluations, go through {found.path}.')
    mode = args.input_img_mode or ('RGB' if config['input_size'][0] == 3 else 'L')  # timm's default
    return Preprocessing.of({**config, 'image_mode': mode, 'exif': args.exif, 'pipeline': pipeline}, model)


def _create(args: argparse.Namespace, resolved: dict[str, Any], create_model: Callable[..., nn.Module]) -> Any:
    """The model with the weights that flags name.

    Raises:
        ValueError: Naming the file or the argument that does not fit.
    """
    if args.pretrained_path and not args.pretrained:
        raise ValueError(f'--pretrained-path {args.pretrained_path} stands for the pretrained weights; type '
                         '--pretrained too')
    try:
        return create_model(pretrained=args.pretrained, checkpoint_path=args.initial_checkpoint, **resolved)
    except TypeError as error:
        raise ValueError(f'--model {args.model} does not take an argument that a flag of the model or --model-kwargs '
                         f'asks for; leave it out ({shortened(error)})') from error
    except (RuntimeError, ValueError, AttributeError, KeyError, OSError, EOFError, UnpicklingError) as error:
        files = {'--initial-checkpoint': args.initial_checkpoint, '--pretrained-path': args.pretrained_path}
        files = {flag: path for flag, path in files.items() if path}
        for flag, path in files.items():
            if not Path(path).is_file():
                raise ValueError(f'{flag} {path}: no such file; expected weights of --model {args.model}') from error
        if files:
            named = ' '.join(f'{flag} {path}' for flag, path in files.items())
            raise ValueError(f'{named}: not weights of --model {args.model} that can be read ({shortened(error)})'
                             ) from error
        if args.pretrained and isinstance(error, OSError):
            raise ValueError(f'--pretrained: the weights of {args.model} cannot be fetched ({shortened(error)}); '
                             '--pretrained --pretrained-path FILE takes them from a file') from error
        raise


def _check_input(args: argparse.Namespace, model: nn.Module, input_size: tuple[int, int, int], hardware: Hardware,
                 patch_size: tuple[int, int] | None) -> None:
    """Check by one pass on blank images, without side effects, that the model accepts them, before data is read.

    Raises:
        ValueError: It does not accept them.
    """
    channels, height, width = input_size
    common: dict[str, Any] = {'device': hardware.device, 'dtype': hardware.dtype}
    images: Any = torch.zeros(1, channels, height, width, **common)
    if args.naflex_loader:
        rows, columns = patch_size or (16, 16)
        places = torch.cartesian_prod(torch.arange(2), torch.arange(2)).to(hardware.device)[None]
        images = {'patches': torch.zeros(1, 4, rows * columns * channels, **common), 'patch_coord': places,
                  'patch_valid': torch.ones(1, 4, dtype=torch.bool, device=hardware.device)}
    try:
        with borrow(model), torch.no_grad(), hardware.autocast():
            model(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, AttributeError) as error:
        wanted = 'the patches of --naflex-loader, a NaFlex model does' if args.naflex_loader else (
            f'images of {channels} x {height} x {width}; type another --img-size or --in-chans')
        raise ValueError(f'--model {args.model} does not take {wanted} ({shortened(error)})') from error
    if args.batch_size == 1 and not args.naflex_loader:
        try:
            with borrow(model) as inner, torch.no_grad(), hardware.autocast():
                inner.train()(images)
        except ValueError as error:  # of BatchNorm
            raise ValueError(f'--batch-size 1: --model {args.model} normalises over the images of a batch, and one has '
                             f'no spread ({shortened(error)}); type 2 or more') from error


def _model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of create_model: the flags, the requested input and the pretrained configuration resolved."""
    check_name(args.model, '--model: ')
    overlay = dict(args.pretrained_cfg_overlay)
    if args.pretrained_path:
        # num_classes=-1 adapts the head in the file to the model's.
        overlay = {'file': args.pretrained_path, 'num_classes': -1, **overlay}
    wanted = {
        'num_classes': args.num_classes + 1 if args.unknown_output else args.num_classes,
        'drop_rate': args.drop, 'drop_path_rate': args.drop_path,
        'drop_block_rate': args.drop_block, 'global_pool': args.gp, 'bn_momentum': args.bn_momentum,
        'bn_eps': args.bn_eps, 'scriptable': args.torchscript, **args.model_kwargs}
    requested = {'in_chans': args.in_chans, 'img_size': args.img_size, 'input_size': args.input_size}
    resolved = resolve_model_input_args(args.model, requested, pretrained_cfg_overlay=overlay or None, **wanted)
    if 'img_size' in resolved and 'img_size' not in args.model_kwargs:
        plain = {name: value for name, value in resolved.items() if name != 'img_size'}
        if _takes(plain, resolved['img_size']):
            return plain
    return resolved


def _takes(plain: dict[str, Any], img_size: Any) -> bool:
    """Whether the model accepts images of this size without being built for it.

    timm's script does not pass the size on; where that works (``dynamic_img_size``), its weights are of the model's own
    size, and so are ours. A throw-away copy is tried; random streams are as before.
    """
    height, width = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            model = timm.create_model(pretrained=False, **plain).eval()
            model(torch.zeros(1, plain.get('in_chans', plain['pretrained_cfg']['input_size'][0]), height, width))
        except Exception:  # building for the size reports the error
            return False
    return True


def _start_head(args: argparse.Namespace, model: Any) -> None:
    if args.head_init_scale is not None:
        model.get_classifier().weight.mul_(args.head_init_scale)
        model.get_classifier().bias.mul_(args.head_init_scale)
    if args.head_init_bias is not None:
        nn.init.constant_(model.get_classifier().bias, args.head_init_bias)


def _placed(args: argparse.Namespace, hardware: Hardware, model: nn.Module) -> nn.Module:
    """Split or synchronised norms, device, dtype, memory format, script; in timm's order."""
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=hardware.device, dtype=hardware.dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        args.dist_bn = ''  # SyncBN already shares statistics between processes
        model = convert_sync_batchnorm(model)
    return torch.jit.script(model) if args.torchscript else model


def build_mixer(args: argparse.Namespace, plan: MixPlan, built: Built) -> Any:
    """The registered mixer of the run, its target layers found and checked; None where timm mixes or nothing does.

    Raises:
        ValueError: The mixer cannot serve the model; the message names both and the remedy.
    """
    if not plan.in_step:
        return None
    mixer = create_step_mixer(plan, args.num_classes + args.unknown_output, args.rank, args.loss == 'bce')
    channels, *size = built.preprocessing.input_size
    for height, width in [tuple(size), *((side, side) for side in args.train_img_sizes or ())]:
        mixer.prepare(built.model, (channels, height, width))
    if utils.is_primary(args):
        _logger.info(f'Mixing in the step: {mixer}')
    return mixer


def build_task(args: argparse.Namespace, plan: MixPlan, built: Built, hardware: Hardware, mixer: Any) -> TrainingTask:
    """Timm's task for the flags: classification, multi-label, one of the distillations; or ours with clean batches.

    Args:
        args: Checked flags.
        plan: Decides the loss.
        built: The model.
        hardware: Device and precision.
        mixer: Of :func:`build_mixer`; some have a task of their own.

    Raises:
        ValueError: A teacher that cannot be made, or does not fit the model.
    """
    common: dict[str, Any] = {
        'device': hardware.device, 'dtype': hardware.dtype, 'verbose': utils.is_primary(args)}
    if args.objective != 'ce':
        return build_objective_task(args, built.model, mixer, common)
    common['criterion'] = create_loss(args, plan, args.num_classes + args.unknown_output).to(device=hardware.device)
    if args.kd_model_name is None:
        if args.task == 'multilabel':
            return RECORDED_TASKS['multilabel'](model=built.model, threshold=args.multilabel_threshold, **common)
        if isinstance(mixer, GradMix) and mixer.config.keep_clean:
            return RECORDED_TASKS['keep-clean'](model=built.model, mixer=mixer, **common)
        if getattr(mixer, 'labels_after_forward', False):
            return RECORDED_TASKS['late-labels'](model=built.model, mixer=mixer, **common)
        return RECORDED_TASKS['classification'](model=built.model, **common)
    options: dict[str, Any] = {
        'student_model': built.model, 'teacher_model': args.kd_model_name,
        'distill_loss_weight': args.distill_loss_weight, 'task_loss_weight': args.task_loss_weight}
    if args.kd_distill_type == 'feature':
        options.update(student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim)
    else:
        options['temperature'] = args.kd_temperature
    if args.kd_distill_type == 'logit':
        options['loss_type'] = args.kd_loss_type
    if args.kd_distill_type == 'token':
        options['distill_type'] = args.kd_token_distill_type
    try:
        return RECORDED_TASKS[args.kd_distill_type](**options, **common)
    except (RuntimeError, ValueError, AttributeError, AssertionError, OSError) as error:
        raise ValueError(f'--kd-model-name {args.kd_model_name} cannot teach --model {args.model} '
                         f'({shortened(error)})') from error


def build_optimizer(args: argparse.Namespace, task: TrainingTask) -> torch.optim.Optimizer:
    """Timm's optimizer for what the task trains.

    Raises:
        ValueError: It does not take one of its flags.
    """
    try:
        optimizer = create_optimizer_v2(trainable(task), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (TypeError, IndexError, ValueError) as error:
        raise ValueError(f'--opt {args.opt} does not take what --opt-kwargs, --opt-betas or another of its flags says '
                         f'({shortened(error)})') from error
    if utils.is_primary(args):
        defaults = {**copy.deepcopy(optimizer.defaults), 'weight_decay': args.weight_decay}
        listed = ', '.join(f'{name}: {value}' for name, value in defaults.items())
        _logger.info(f'Created {type(optimizer).__name__} ({args.opt}) optimizer: {listed}')
    return optimizer


def compile_task(args: argparse.Namespace, task: TrainingTask, hardware: Hardware) -> None:
    """Compile the task, then wrap it for several processes, in this order."""
    if args.torchcompile:
        if utils.is_primary(args):
            _logger.info(f'Compiling with backend={args.torchcompile}, mode={args.torchcompile_mode}')
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        # DDP takes device ids for accelerators only.
        device_ids = None if hardware.device.type == 'cpu' else [hardware.device]
        task.prepare_distributed(device_ids=device_ids, broadcast_buffers=not args.no_ddp_bb)


def trainable(task: TrainingTask) -> nn.Module:
    """The module whose weights the task trains."""
    module = task.get_trainable_module()
    assert module is not None
    return module


def live_model(task: TrainingTask) -> nn.Module:
    """The classifier that the task trains, without wrappers; of a feature distillation the student."""
    module = unwrap(trainable(task))
    return module.student if isinstance(module, FeatureDistillationTrainableModule) else module


def build_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int,
                   decreasing: bool) -> tuple[Any, int]:
    """Timm's schedule (None for --sched none) and the number of epochs it runs."""
    scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args, decreasing_metric=decreasing), updates_per_epoch=updates_per_epoch)
    if utils.is_primary(args):
        unit = 'update' if args.sched_on_updates else 'epoch'
        _logger.info(f'Scheduled epochs: {epochs}. LR stepped per {unit}.')
    return scheduler, int(epochs)
