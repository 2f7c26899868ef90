"""The config of a run: a strict pydantic tree, read from presets, files and overrides. Needs no torch."""

from minigpt.config.base import Section
from minigpt.config.data import DataConfig, StageConfig
from minigpt.config.errors import RequestError, WorkError
from minigpt.config.generation import GenerationConfig
from minigpt.config.loading import config_yaml, is_preset, load_config, preset_names, resolved
from minigpt.config.loggers import LoggersConfig, TrackioConfig, WandbConfig
from minigpt.config.model import ModelConfig
from minigpt.config.optimizer import OptimizerConfig
from minigpt.config.sources import OwnSource, SourceConfig
from minigpt.config.tokenizer import TokenizerConfig
from minigpt.config.training import (
    CallbacksConfig,
    CheckpointConfig,
    EarlyStoppingConfig,
    MonitorConfig,
    SampleConfig,
    TrainingConfig,
)
from minigpt.config.tree import Config, fields, ineffective

__all__ = [
    "CallbacksConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EarlyStoppingConfig",
    "GenerationConfig",
    "LoggersConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "OwnSource",
    "RequestError",
    "SampleConfig",
    "Section",
    "SourceConfig",
    "StageConfig",
    "TokenizerConfig",
    "TrackioConfig",
    "TrainingConfig",
    "WandbConfig",
    "WorkError",
    "config_yaml",
    "fields",
    "ineffective",
    "is_preset",
    "load_config",
    "preset_names",
    "resolved",
]
