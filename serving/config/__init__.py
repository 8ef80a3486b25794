"""The one config: what a file may say, and how it is read."""

from serving.config.config import Config, json_schema
from serving.config.environment import Environment, read_environment
from serving.config.load import load_config, parse_config
from serving.config.problem import render_problems

__all__ = ["Config", "Environment", "json_schema", "load_config", "parse_config", "read_environment", "render_problems"]
