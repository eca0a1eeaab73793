"""The facts by which an execution ends."""

COMPLETED, FAILED, CANCELLED = "ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled"
ENDS = (COMPLETED, FAILED, CANCELLED, "DecisionFailed")
