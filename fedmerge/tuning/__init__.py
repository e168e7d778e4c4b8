"""Settings chosen by the validation accuracy of runs that differ in nothing else; the door is tune.py."""
