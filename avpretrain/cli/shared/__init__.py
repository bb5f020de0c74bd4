"""What several verbs need: arguments, places of results, tables on a terminal."""
