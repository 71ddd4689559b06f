"""Measures of synthetic data, each with the level from which it is an alarm. Pure functions over records; nothing here imports torch.

None of them knows the truth; together they show what goes wrong most often: leaked labels, copied queries, negatives that are none,
copies, collapse, broken answers, answers that talk about themselves, drift from the topic, and triplets that lengths or words alone solve.
"""

from speedlit.synthesis.quality.alarms import Levels, merge, show
from speedlit.synthesis.quality.answers import Answers
from speedlit.synthesis.quality.collapse import Trend
from speedlit.synthesis.quality.faults import fault_of
from speedlit.synthesis.quality.judge import JudgeMeasures
from speedlit.synthesis.quality.measures import Measures, measure

__all__ = ["Answers", "JudgeMeasures", "Levels", "Measures", "Trend", "fault_of", "measure", "merge", "show"]
