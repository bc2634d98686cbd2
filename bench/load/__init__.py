"""Servers under load: requests that come at random, answered by batches of steps, by batches of requests, and one by one."""
