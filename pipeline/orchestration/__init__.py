"""Components, their executions, and the artifacts that these read and make."""
