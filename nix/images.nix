# How the images run each engine: what is started, on which ports, and how one asks whether it works.
{
  torch =
    { program, ... }:
    {
      Entrypoint = [ "${program}/bin/python3" ];
      ports = [ ];
      # importing torch costs seconds of a processor
      seconds = 600;
      health = [
        "${program}/bin/python3"
        "-c"
        "import sys, torch; sys.exit(not torch.cuda.is_available())"
      ];
    };

  llama-cpp =
    { program, curl, ... }:
    {
      Entrypoint = [
        "${program}/bin/llama-server"
        "--host"
        "0.0.0.0"
        "--port"
        "8080"
        "--n-gpu-layers"
        "99"
        "--models-dir"
        "/models"
      ];
      ports = [ 8080 ];
      seconds = 30;
      health = [
        curl
        "--fail"
        "--silent"
        "http://127.0.0.1:8080/health"
      ];
    };

  ollama =
    { program, curl, ... }:
    {
      Entrypoint = [
        "${program}/bin/ollama"
        "serve"
      ];
      ports = [ 11434 ];
      environment = {
        OLLAMA_HOST = "0.0.0.0:11434";
        OLLAMA_MODELS = "/models";
      };
      seconds = 30;
      health = [
        curl
        "--fail"
        "--silent"
        "http://127.0.0.1:11434/api/version"
      ];
    };

  vllm =
    { program, curl, ... }:
    {
      Entrypoint = [
        "${program}/bin/vllm"
        "serve"
        "--host"
        "0.0.0.0"
        "--port"
        "8000"
        "--enforce-eager"
      ];
      ports = [ 8000 ];
      environment = {
        HF_HOME = "/models";
        VLLM_NO_USAGE_STATS = "1";
        VLLM_WORKER_MULTIPROC_METHOD = "spawn";
      };
      seconds = 30;
      health = [
        curl
        "--fail"
        "--silent"
        "http://127.0.0.1:8000/health"
      ];
    };
}
