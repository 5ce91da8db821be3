#!/bin/bash
# ORPO with a LoRA adapter
export CUDA_VISIBLE_DEVICES=0

accelerate launch --config_file accelerate.yaml \
    trl/scripts/orpo.py \
    --model_name_or_path=demo \
    --dataset_name demo \
    --beta 0.1 \
    --per_device_train_batch_size 4 \
    --learning_rate 8e-6 \
    --max_steps 100 --logging_steps 10 \
    --max_length 256 --max_completion_length 128 \
    --use_peft --lora_r 16 --lora_target_modules all-linear \
    --output_dir gemma-orpo \
    --no_remove_unused_columns
