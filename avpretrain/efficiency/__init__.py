"""What training costs: analytic FLOPs, measured time, reports."""
