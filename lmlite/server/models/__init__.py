"""Models and the processes that run them: started, watched, restarted."""
