"""Exported models: opened to act with, laid out for LeRobot, checked in the original project."""
